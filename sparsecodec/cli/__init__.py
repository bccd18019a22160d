"""The command ``sparsecodec``."""

from sparsecodec.cli.main import main

__all__ = ["main"]
