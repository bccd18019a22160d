"""Walks one transform with torch.fx and records its layers, channel equalities, locks and residual branches."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from sparsecodec.errors import GraphError
from sparsecodec.sparsity import rules
from sparsecodec.sparsity.layout import OUTSIDE, UNKNOWN, Layout, Recorder
from sparsecodec.sparsity.scatter import ScatterConv2d


@dataclass(frozen=True)
class Walk:
    """What a walk through one transform found.

    Attributes:
        recorder: layers, equalities and locks.
        branches: names of the layers that end a residual branch, in execution order.
        results: its outputs, in order.
    """

    recorder: Recorder
    branches: tuple[str, ...]
    results: tuple[Layout, ...]


class Tracer(fx.Tracer):
    """Stops at torch's own layers, at anything derived from a convolution, at GDN, deformable and scattered ones.

    Also at those of our ops that a model calls as functions, which look at shapes. While fx traces, every module of the
    process is called through `call_module` and `getattr`: those that other threads run are let through as they are.
    """

    lock = threading.Lock()  # fx puts back what it found, which has to be torch's own

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(*rules.WARPS, *rules.DEFORMATIONS))
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = (rules.is_conv, rules.is_quantized, rules.is_gdn, rules.is_deformable)
        return (
            any(rule(m) for rule in ours)
            or isinstance(m, ScatterConv2d)
            or super().is_leaf_module(m, module_qualified_name)
        )


class _Proxy(fx.Proxy):
    """One that tells ``x += y``, which changes what other names of x see, from ``x = x + y``; fx's own does not."""

    def _in_place(self, function: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)


def trace(module: nn.Module, name: str) -> fx.Graph:
    """The graph of `module`, down to the layers at which `Tracer` stops; arguments that have a default keep it.

    Raises:
        GraphError: the forward depends on values that tracing does not have; `name` says whose.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    optional = {
        parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty
    }
    try:
        with Tracer.lock:
            graph = Tracer().trace(module, concrete_args=optional or None)
    except Exception as error:  # fx runs the module's own forward, which may raise anything
        raise GraphError(f"{name} cannot be traced: {type(error).__name__}: {error}") from error
    _drop_arguments(graph, len(parameters) - len(optional))
    return graph


def _drop_arguments(graph: fx.Graph, kept: int) -> None:
    """Removes all arguments but the first `kept`, and the assertions on their values that fx adds."""
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    dropped = dict.fromkeys(arguments[kept:])
    for node in graph.nodes:
        if node.all_input_nodes and all(source in dropped for source in node.all_input_nodes):
            dropped[node] = None
    for node in reversed(dropped):
        graph.erase_node(node)


@dataclass(frozen=True)
class Bank:
    """A table of steps, ``[rates, width, 1, 1]``, of which a transform is given a row; `name` is its dotted path."""

    name: str
    width: int


def walk(
    module: nn.Module,
    prefix: str,
    banks: Mapping[str, Bank],
    recorder: Recorder | None = None,
    inputs: Sequence[Layout] = (),
    outputs: Sequence[np.ndarray | None] = (),
) -> Walk:
    """Trace `module` and interpret it on channel layouts.

    Args:
        module: a transform.
        prefix: its dotted path.
        banks: by the argument of the transform that takes a row of it.
        recorder: of the transforms that were walked before, or None for one of its own.
        inputs: its first inputs; the others come from outside.
        outputs: atoms ``[C]`` that its first outputs are; None, and those behind, are locked.

    Raises:
        GraphError: the forward depends on values that tracing does not have.
    """
    label = prefix or type(module).__name__
    if prefix:
        prefix += "."
    recorder = recorder or Recorder()
    recorder.prefix = prefix
    inputs = [*inputs]
    if not list(module.children()):  # a lone layer: fx would trace into it
        recorder.prefix = ""
        results = (rules.apply_module(recorder, prefix.rstrip("."), module, inputs[0] if inputs else OUTSIDE),)
        _hand_on(recorder, results, outputs)
        return Walk(recorder, (), results)
    graph = trace(module, label)
    env: dict[fx.Node, object] = {}
    results: tuple[Layout, ...] = ()
    for node in graph.nodes:
        if node.op == "placeholder" and node.target in banks:
            bank = banks[node.target]
            recorder.banks[bank.name] = recorder.new(bank.width)
            env[node] = Layout((recorder.banks[bank.name],), keeps_zero=False)
            continue
        if node.op == "placeholder":
            env[node] = inputs.pop(0) if inputs else OUTSIDE
        elif node.op == "output":
            results = tuple(rules.flat_layouts(fx.map_arg(node.args, env.__getitem__)))
        else:
            env[node] = _interpret(recorder, module, node, env)
    _hand_on(recorder, results, outputs)
    return Walk(recorder, tuple(prefix + name for name in _branches(module, graph)), results)


def _hand_on(rec: Recorder, results: Sequence[Layout], outputs: Sequence[np.ndarray | None]) -> None:
    """Joins what a transform makes with what others know it by; locks the rest."""
    for i, layout in enumerate(results):
        atoms = outputs[i] if i < len(outputs) else None
        if atoms is None:
            rec.lock(layout, "it is an output")
            continue
        known = layout.known and len(layout.channels) == len(atoms)
        if known:
            rec.join(layout.channels, atoms)
        if not known or not layout.keeps_zero:
            for side in (layout, Layout((atoms,))):
                rec.lock(side, "it is handed on, and is not known in full or not zero where it is masked")


def _interpret(rec: Recorder, root: nn.Module, node: fx.Node, env: dict[fx.Node, object]) -> object:
    if node.op == "get_attr":
        return OUTSIDE if _attribute(root, node.target).numel() > 1 else UNKNOWN
    args = fx.map_arg(node.args, env.__getitem__)
    kwargs = fx.map_arg(node.kwargs, env.__getitem__)
    if node.op == "call_module":
        inputs = rules.flat_layouts((args, kwargs))
        module = root.get_submodule(node.target)
        if len(inputs) == 1:
            return rules.apply_module(rec, node.target, module, inputs[0])
        if rules.is_deformable(module):
            rules.lock_all(rec, tuple(inputs[2:]), {}, f"{rec.prefix}{node.target} weighs its taps with it")
            return rules.deformable(rec, node.target, module, *inputs[:2])
        return rules.lock_all(rec, args, kwargs, f"{rec.prefix}{node.target} has no rule for {len(inputs)} inputs")
    return rules.apply_function(rec, node.target, args, kwargs, rec.prefix + node.name)


def _attribute(root: nn.Module, path: str):
    parent, _, name = path.rpartition(".")
    return getattr(root.get_submodule(parent), name)


def branch_tails(module: nn.Module, prefix: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """What stands between the last layer of each residual branch and its addition: activations, or nothing.

    Args:
        module: a transform.
        prefix: its dotted path, with which the names of the layers begin.

    Raises:
        GraphError: as `walk`.
    """
    if not list(module.children()):
        return {}
    ends = _branches(module, trace(module, prefix or type(module).__name__))
    return {f"{prefix}.{name}" if prefix else name: _tail(module, name, end) for name, end in ends.items()}


def _branches(root: nn.Module, graph: fx.Graph) -> dict[str, fx.Node]:
    """Convolutions that reach a residual addition through activations alone, and nothing else; and what is added.

    The shorter side of a block (a lone convolution of the tensor that the other side starts from) is its skip and not
    a branch.
    """
    found: dict[str, fx.Node] = {}
    for node in graph.nodes:
        operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
        if not rules.is_add(node.target) or len(operands) != 2:
            continue
        for operand, other in (operands, operands[::-1]):
            conv = _conv_behind(root, operand)
            if conv is not None and not _passes_through(other, conv.args[0]):
                found.setdefault(conv.target, operand)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    return {name: operand for name, operand in found.items() if calls.count(name) == 1}


def _tail(root: nn.Module, conv: str, end: fx.Node) -> Callable[[Tensor], Tensor]:
    """From the output of `conv` to the value of `end`, which it reaches through activations alone."""
    nodes = []
    while end.target != conv:
        nodes.insert(0, end)
        end = end.args[0]

    def tail(x: Tensor) -> Tensor:
        for node in nodes:
            if node.op == "call_module":
                x = root.get_submodule(node.target)(x)
            elif node.op == "call_method":
                x = getattr(x, node.target)(*node.args[1:], **node.kwargs)
            else:
                x = node.target(x, *node.args[1:], **node.kwargs)
        return x

    return tail


def _conv_behind(root: nn.Module, node: fx.Node) -> fx.Node | None:
    while len(node.users) == 1:
        module = root.get_submodule(node.target) if node.op == "call_module" else None
        if module is not None and rules.is_conv(module):
            return None if module.groups > 1 else node
        if not rules.is_activation(node.target, module) or node.all_input_nodes != [*node.args[:1]]:
            return None  # an activation reads one tensor, and nothing else that tracing computes
        node = node.args[0]
    return None


def _passes_through(node: fx.Node, source: fx.Node) -> bool:
    """Whether `node` is computed from `source` in more than one layer, so that a lone layer of `source` is a skip."""
    layers, seen, queue = 0, {node}, [node]
    reached = False
    while queue:
        current = queue.pop()
        if current is source:
            reached = True
            continue
        layers += current.op == "call_module"
        for parent in current.all_input_nodes:
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return reached and layers > 1
