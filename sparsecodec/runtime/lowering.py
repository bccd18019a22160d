"""From a traced module to a list of steps, each one call of an op (or of a torch layer that no rule knows).

Layers are recognised by structure, never by the name of a codec's class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsecodec.errors import GraphError
from sparsecodec.nn.fvc_layers import DeformableConv2d
from sparsecodec.runtime.writes import check_views, without_writing, written
from sparsecodec.sparsity.rules import is_add, is_depthwise, is_gdn, is_masked, is_multiply, is_quantized
from sparsecodec.sparsity.scatter import ScatterConv2d
from sparsecodec.sparsity.tracing import trace

CONVOLUTIONS = ("pointwise", "conv2d_act", "conv_transpose2d_act")
PLAIN = "torch"
INPUTS = ("input", "factors")


@dataclass(eq=False)
class Step:
    """One call.

    Attributes:
        op: name of a registered op; ``"input"``, or ``"factors"`` for an input that is a factor of each channel; or
            `PLAIN` for a torch layer or function, then `function` is called.
        inputs: argument name -> the step whose result is passed. Plain steps have ``function``'s arguments in `args`.
        constants: the op's other arguments.
        paths: the module paths that this step stands for.
        reason: why this step is plain; empty for the others.
    """

    op: str
    inputs: dict[str, Step] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def sources(self) -> list[Step]:
        """The steps that this one reads, in order, with repeats."""
        found = list(self.inputs.values())
        fx.node.map_aggregate((self.args, self.kwargs), lambda value: found.append(value) if _is_step(value) else None)
        return found

    @property
    def target(self) -> Any:
        """What a plain step calls: a function, the name of a method, or a module."""
        return self.function.args[0] if isinstance(self.function, partial) else self.function

    def joined(self, absorbed: Step, inputs: dict[str, Step] | None = None, **constants: Any) -> Step:
        """This step with more constants and inputs, and the paths of `absorbed` as well."""
        return Step(
            self.op,
            {**self.inputs, **(inputs or {})},
            {**self.constants, **constants},
            self.paths + absorbed.paths,
            function=self.function,
        )

    def replace_source(self, old: Step, new: Step) -> None:
        """Reads `new` wherever it read `old`."""

        def swap(value: Any) -> Any:
            return new if value is old else value

        self.inputs = {name: swap(source) for name, source in self.inputs.items()}
        self.args = fx.node.map_aggregate(self.args, swap)
        self.kwargs = fx.node.map_aggregate(self.kwargs, swap)


def _is_step(value: object) -> bool:
    return isinstance(value, Step)


@dataclass
class Program:
    """Steps in order of execution; the inputs are the first, `output` is what the module returns: maybe a tuple."""

    steps: list[Step]
    output: Step

    @property
    def inputs(self) -> list[Step]:
        """The module's arguments, in their order."""
        return [step for step in self.steps if step.op in INPUTS]

    def users(self, step: Step) -> list[Step]:
        """Who reads `step`, each once."""
        return [other for other in self.steps if step in other.sources]

    def only_user(self, step: Step) -> Step | None:
        """The one step that reads `step`, if it is one and `step` is not the output."""
        users = self.users(step)
        return users[0] if len(users) == 1 and step is not self.output else None

    def merge(self, absorbed: list[Step], result: Step) -> None:
        """Puts `result` in the place of the last of `absorbed` and drops the rest of them."""
        last = max(absorbed, key=self.steps.index)
        for step in self.steps:
            step.replace_source(last, result)
        self.output = result if self.output is last else self.output
        self.steps[self.steps.index(last)] = result
        self.steps = [step for step in self.steps if step is result or step not in absorbed]


def lower(module: nn.Module, name: str, factors: Sequence[str] = ()) -> Program:
    """Traces a module and lowers each node to a step.

    Args:
        module: in eval mode; maps tensors to a tensor or a tuple of them.
        name: its path in the model, for the report.
        factors: names of the arguments that are ``[1, C, 1, 1]``: steps of quantisation, the factors of channels.

    Raises:
        GraphError: the module cannot be traced, takes nothing, or returns something else than tensors.
    """
    wrapped = module if list(module.children()) else nn.Sequential(module)  # fx would trace into a lone layer
    graph = trace(wrapped, name)
    env: dict[fx.Node, Any] = {}
    steps: list[Step] = []
    for node in graph.nodes:
        if node.op == "output":
            return _program(steps, fx.map_arg(node.args[0], env.get), name)
        if node.op == "get_attr":
            env[node] = _attribute(wrapped, node.target)
            continue
        path = name if wrapped is not module else f"{name}.{node.target}".lstrip(".")
        if node.op == "placeholder":
            step = Step("factors" if node.target in factors else "input")
        else:
            step = _lower_node(wrapped, node, env, path)
        if (changed := written(wrapped, node)) is not None:  # whoever reads the changed tensor later reads the result
            check_views(name, node, changed)
            before = env[changed]
            env.update({other: step for other, value in env.items() if value is before})
        env[node] = step
        if step not in steps:
            steps.append(step)
    raise GraphError(f"{name} returns nothing")


def _program(steps: list[Step], result: Any, name: str) -> Program:
    """The program that returns `result`, a step or a tuple of steps, without the steps that it does not need."""
    if isinstance(result, tuple | list) and result and all(map(_is_step, result)):
        result = Step(PLAIN, function=together, args=tuple(result), reason="several results")
        steps = [*steps, result]
    if not _is_step(result):
        raise GraphError(f"{name} returns something else than a tensor or a tuple of them")
    if not any(step.op == "input" for step in steps):
        raise GraphError(f"{name} takes no tensor")
    needed = {result}
    for step in reversed(steps):
        if step in needed:
            needed.update(step.sources)
    return Program([step for step in steps if step in needed or step.op in INPUTS], result)


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What a program of several results ends in."""
    return tensors


def _attribute(root: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(root.get_submodule(parent), name)


def _lower_node(root: nn.Module, node: fx.Node, env: dict[fx.Node, Any], path: str) -> Step:
    args = fx.map_arg(node.args, env.__getitem__)
    kwargs = fx.map_arg(node.kwargs, env.__getitem__)
    target = root.get_submodule(node.target) if node.op == "call_module" else node.target
    if written(root, node) is not None:
        target, args, kwargs = without_writing(node, target, args, kwargs)
    if node.op == "call_module":
        module = target
        if len(args) == 1 and not kwargs and _is_step(args[0]):
            return _lower_module(module, args[0], path)
        if isinstance(module, DeformableConv2d) and not is_quantized(module):
            inputs = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            constants = {name: _detached(value) for name, value in module.constants().items()}
            return Step("deform_conv2d", {name: x for name, x in inputs.items() if x is not None}, constants, (path,))
        return Step(PLAIN, paths=(path,), function=module, args=args, kwargs=kwargs, reason="more than one input")
    if len(args) == 2 and all(map(_is_step, args)) and not kwargs:  # by an operator, a function or a method
        if is_add(target):
            return Step("add", {"x": args[0], "residual": args[1]}, paths=())
        x, factors = args if args[1].op == "factors" else args[::-1]
        if is_multiply(target) and factors.op == "factors" and x.op != "factors":
            return Step("scale", {"x": x, "scale": factors})
    if node.op == "call_method":
        function = partial(_call_method, target) if isinstance(target, str) else target
        reason = f"Tensor.{node.target} has no rule"
        return Step(PLAIN, function=function, args=args, kwargs=kwargs, reason=reason)
    if len(args) == 2 and not kwargs and isinstance(args[1], int):
        if target is F.pixel_shuffle:
            return Step("pixel_shuffle", {"x": args[0]}, {"shuffle": args[1]})
        if target is F.pixel_unshuffle:
            return _unshuffle(args[0], args[1], ())
    if len(args) == 1 and _is_step(args[0]):
        if target in (F.relu, torch.relu) and set(kwargs) <= {"inplace"}:
            return Step("activation", {"x": args[0]}, {"slope": 0.0})
        if target is F.leaky_relu and set(kwargs) <= {"inplace", "negative_slope"}:
            return Step("activation", {"x": args[0]}, {"slope": float(kwargs.get("negative_slope", 0.01))})
    label = getattr(target, "__name__", str(target))
    return Step(PLAIN, paths=(), function=target, args=args, kwargs=kwargs, reason=f"{label} has no rule")


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _call_method(name: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    return getattr(tensor, name)(*args, **kwargs)


def _unshuffle(x: Step, factor: int, paths: tuple[str, ...]) -> Step:
    return Step(PLAIN, paths=paths, function=pixel_unshuffle, args=(x, factor), reason="one copy, by torch")


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """`torch.nn.functional.pixel_unshuffle` whose result is channels_last: one copy."""
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // factor, factor, w // factor, factor).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(n, h // factor, w // factor, c * factor**2).permute(0, 3, 1, 2)


def _lower_module(module: nn.Module, x: Step, path: str) -> Step:
    if isinstance(module, nn.Identity):
        return x
    conv = module.conv if isinstance(module, ScatterConv2d) else module
    if is_quantized(conv):
        reason = f"{conv.weight_bits}-bit weights, {conv.activation_bits}-bit inputs: integers, as in the model"
        return Step(PLAIN, paths=(path,), function=module, args=(x,), reason=reason)
    if isinstance(module, ScatterConv2d) and type(conv) is nn.Conv2d:
        step = lower_conv(module.conv, x, path)
        if step.op in ("pointwise", "conv2d_act"):
            step.constants["out_index"] = module.out_index.to(torch.int32)
            step.function = module
        return step
    if type(module) in (nn.Conv2d, nn.ConvTranspose2d):
        return lower_conv(module, x, path)
    if isinstance(module, nn.LeakyReLU | nn.ReLU):
        slope = float(getattr(module, "negative_slope", 0.0))
        return Step("activation", {"x": x}, {"slope": slope}, (path,))
    if isinstance(module, nn.PixelUnshuffle):
        return _unshuffle(x, module.downscale_factor, (path,))
    if isinstance(module, nn.PixelShuffle):
        return Step("pixel_shuffle", {"x": x}, {"shuffle": module.upscale_factor}, (path,))
    if is_gdn(module):
        constants = _gdn_constants(module)
        if _divides_by_root(module, **constants):
            return Step("gdn", {"x": x}, constants, (path,))
        reason = f"{type(module).__name__} is no division by sqrt(beta + gamma x^2)"
        return Step(PLAIN, paths=(path,), function=module, args=(x,), reason=reason)
    if is_masked(module):
        reason = f"{type(module).__name__} has no rule: a convolution with what the mask leaves, by torch"
        return Step(PLAIN, paths=(path,), function=_with_mask_applied(module), args=(x,), reason=reason)
    return Step(PLAIN, paths=(path,), function=module, args=(x,), reason=f"{type(module).__name__} has no rule")


@torch.no_grad()
def _with_mask_applied(module: nn.Conv2d) -> nn.Conv2d:
    """A plain convolution of the masked weights. CompressAI's layer replaces its own weight in every forward, which
    would leave a weight without values behind where only shapes are inferred."""
    sizes = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
    more = {"dilation": module.dilation, "groups": module.groups, "padding_mode": module.padding_mode}
    plain = nn.Conv2d(*sizes, **more, device="meta")  # draws no random numbers
    plain.weight = nn.Parameter(module.weight * module.mask, requires_grad=False)
    plain.bias = module.bias
    return plain


def lower_conv(module: nn.Conv2d | nn.ConvTranspose2d, x: Step, path: str) -> Step:
    """The step of a convolution that reads `x`; a plain one, with its reason, if its geometry has no rule."""
    plain = Step(PLAIN, paths=(path,), function=module, args=(x,))
    weight = module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    if is_depthwise(module) and _geometry(module) == (3, 1, 1):
        return Step("depthwise", {"x": x}, {"weight": weight, "bias": bias}, (path,), function=module)
    geometry = _geometry(module)
    if geometry is None or module.groups != 1:
        plain.reason = f"a convolution with groups={module.groups} or uneven stride, padding or dilation"
        return plain
    kernel, stride, padding = geometry
    if isinstance(module, nn.ConvTranspose2d):
        constants = {"stride": stride, "padding": padding, "output_padding": module.output_padding[0]}
        return Step("conv_transpose2d_act", {"x": x}, {"weight": weight, "bias": bias, **constants}, (path,))
    if geometry == (1, 1, 0):
        return Step("pointwise", {"x": x}, {"weight": weight[:, :, 0, 0], "bias": bias}, (path,))
    return Step("conv2d_act", {"x": x}, {"weight": weight, "bias": bias, "stride": stride, "padding": padding}, (path,))


def _geometry(module: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, int, int] | None:
    """(kernel, stride, padding) of a plain square convolution, None for any other."""
    values = []
    for value in (module.kernel_size, module.stride, module.padding):
        if isinstance(value, str) or len(set(value)) != 1:
            return None
        values.append(value[0])
    even_output = len(set(module.output_padding)) == 1
    if set(module.dilation) != {1} or module.padding_mode != "zeros" or not even_output:
        return None
    return tuple(values)


def _gdn_constants(module: nn.Module) -> dict[str, Tensor | bool]:
    """beta and gamma as the layer uses them: reparametrised where it has a reparametrisation."""
    beta, gamma = module.beta, module.gamma
    if hasattr(module, "beta_reparam"):
        beta, gamma = module.beta_reparam(beta), module.gamma_reparam(gamma)
    return {"beta": beta.detach(), "gamma": gamma.detach(), "inverse": module.inverse}


def _divides_by_root(module: nn.Module, beta: Tensor, gamma: Tensor, inverse: bool) -> bool:
    """Whether a layer with GDN's parameters computes GDN; there are variants with other norms."""
    with torch.no_grad():
        x = torch.linspace(-2, 2, 4 * len(beta), dtype=beta.dtype, device=beta.device).view(1, -1, 2, 2)
        norm = F.conv2d(x * x, gamma[:, :, None, None], beta).sqrt()
        return torch.allclose(module(x), x * norm if inverse else x / norm, rtol=1e-3, atol=1e-5)
