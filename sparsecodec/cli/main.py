"""Parses the command line, runs one command, and turns errors into a sentence and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import sparsecodec
from sparsecodec.cli import bdrate, convert, decode, demo, encode, evaluate, info, plot, train, verify
from sparsecodec.errors import SparseCodecError

COMMANDS = (demo, convert, encode, decode, info, verify, evaluate, bdrate, plot, train)
EXIT_CODES = """exit codes: 0 done, 1 failed, 2 wrong usage, 3 corrupt stream, 4 stream or weights of another model,
5 over a limit. Progress goes to stderr, results to stdout."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run``, which takes the parsed arguments."""
    parser = _Parser("sparsecodec", description=sparsecodec.__doc__.splitlines()[0], epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"sparsecodec {sparsecodec.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's) and returns the exit code."""
    parser = build_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.exit(2, parser.format_help())
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # what cannot be written is an error of the command, not of Python's end
    except SparseCodecError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output has seen enough; what is left in buffers has nowhere to go
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return 1
    except OSError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as of all other errors: twenty of options would hide it."""
        self.exit(2, f"sparsecodec: {message} (see {self.prog} --help)\n")


def _fail(message: str, code: int) -> int:
    print(f"sparsecodec: {' '.join(message.split())}", file=sys.stderr)
    return code
