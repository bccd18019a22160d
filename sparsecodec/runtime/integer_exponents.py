"""Of which exponent each tensor of an integer program is, and whether it has 16 bits or 32 (docs/portable.md)."""

from __future__ import annotations

from collections.abc import Sequence

from sparsecodec.errors import GraphError
from sparsecodec.ops.integer_deform_columns import MASK_BITS
from sparsecodec.runtime.integer_constants import layer_of, wanted_exponent
from sparsecodec.runtime.integer_steps import FACTORS, FACTORS_EXPONENT, GATE, same_integers
from sparsecodec.runtime.lowering import CONVOLUTIONS, Program, Step, together

RESULT_EXPONENT = -16  # of a tensor of 32 bits


class Exponents:
    """Exponents of a program's tensors.

    Tensors that hold the same integers in other places (concatenated, pooled, unshuffled) and those on both sides of a
    gate are of one exponent: the coarsest that a layer reads one of them with, or that the program's caller asks
    for. They are int16. All others, which only additions, activations and excitations read, are int32, exponent -16.

    Args:
        program: of steps that have rules.
        sources: per input the exponent that it has, None: that which the layers ask for. Missing ones are None.
        results: per result the exponent that it is asked for as int16; None: int32. Missing ones are None.
        name: for messages.

    Raises:
        GraphError: they contradict each other.
    """

    def __init__(
        self, program: Program, sources: Sequence[int | None], results: Sequence[int | None], name: str
    ) -> None:
        self._parent: dict[Step, Step] = {}
        self._coarsest: dict[Step, int] = {}
        inputs, outputs = program.inputs, program_results(program)
        self.inputs, self.outputs = inputs, outputs
        sources, results = _of_all(inputs, sources, name, "inputs"), _of_all(outputs, results, name, "results")
        for step in program.steps:
            for other in same_integers(step):
                self._parent[self._root(other)] = self._root(step)
        readers: dict[Step, Step] = {}
        for step in program.steps:
            if step.op in (*CONVOLUTIONS, "depthwise", "gdn"):
                readers[self._root(step.inputs["x"])] = step
                self._ask(step.inputs["x"], wanted_exponent(layer_of(step)))
            elif step.op == FACTORS:
                self._ask(step.inputs["x"], FACTORS_EXPONENT)
                self._ask(step, -MASK_BITS)
        asked = dict(self._coarsest)
        for step, exponent in zip(outputs, results, strict=True):
            if exponent is not None:
                self._ask(step, exponent)
            elif self._root(step) in readers:
                reader = readers[self._root(step)]
                raise GraphError(f"{name}: {_label(step)} is both a result of 32 bits and read by {_label(reader)}")
        for step in program.steps:
            if step.op == GATE and self.of_int16(step) is None:
                what = (
                    "a result of 32 bits cannot be a gate's" if step in outputs else "what a gate gives is only added"
                )
                raise GraphError(f"{name}: {what}, {_label(step)}")
        given = [(step, exponent) for step, exponent in zip(inputs, sources, strict=True) if exponent is not None]
        for step, exponent in given:
            needed = asked.get(self._root(step), exponent)
            if exponent < needed:
                raise GraphError(f"{name}: an input of exponent {exponent} (needs {needed} or more)")
            self._ask(step, exponent)
        for step, exponent in given:
            if self[step] != exponent:
                raise GraphError(f"{name}: an input of exponent {exponent} that goes with one of {self[step]}")

    def of_int16(self, step: Step) -> int | None:
        """The exponent of an int16 result; None: it is int32."""
        return self._coarsest.get(self._root(step))

    def __getitem__(self, step: Step) -> int:
        exponent = self.of_int16(step)
        return RESULT_EXPONENT if exponent is None else exponent

    def bits(self, step: Step) -> int:
        """16 or 32, of its result."""
        return 32 if self.of_int16(step) is None else 16

    def _ask(self, step: Step, exponent: int) -> None:
        root = self._root(step)
        self._coarsest[root] = max(self._coarsest.get(root, exponent), exponent)

    def _root(self, step: Step) -> Step:
        while step in self._parent and self._parent[step] is not step:
            step = self._parent[step]
        return step


def program_results(program: Program) -> list[Step]:
    """The steps whose results a program returns."""
    last = program.output
    return list(last.args) if last.function is together else [last]


def _of_all(steps: list[Step], given: Sequence[int | None], name: str, what: str) -> list[int | None]:
    if len(given) > len(steps):
        raise GraphError(f"{name}: exponents of {len(given)} {what} (has {len(steps)})")
    return [*given, *(None for _ in steps[len(given) :])]


def _label(step: Step) -> str:
    return ", ".join(step.paths) or step.op
