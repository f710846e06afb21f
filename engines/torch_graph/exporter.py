"""A module of torch to an ``ExportedProgram``, and that to ONNX, each held to what the module answers."""

from __future__ import annotations

import inspect
import re
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from engines.errors import EngineError
from engines.torch_graph.library import load_torch
from engines.torch_graph.program import dtype_name, first_sentence, ports_of
from engines.torch_graph.varying_sizes import DERIVED, VaryingSizes, every_size, in_steps, narrower

LEAST_OPSET = 18
"""The lowest that torch's exporter writes."""
BATCH = "batch"
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""How far the exported program may be from the module: of a value, and of the largest value of that output."""


class WrongModule(ValueError):
    """What was handed over is no network with example inputs, or does not run on them. Whoever wrote it acts."""


@dataclass(frozen=True)
class Traceable:
    """A module, inputs that it takes, and which of their sizes may vary."""

    module: Any
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    axes: Mapping[str, Mapping[int, str]]
    """Input -> axis -> the name of its size; axes of one name have one size."""

    def inputs(self) -> dict[str, Any]:
        """The example inputs by name."""
        return dict(zip(positional_names(self.module, len(self.arguments)), self.arguments)) | dict(self.keywords)

    def with_inputs(self, inputs: Mapping[str, Any]) -> Traceable:
        """The same with others of these names."""
        values = list(inputs.values())
        arguments = tuple(values[: len(self.arguments)])
        keywords = {name: inputs[name] for name in self.keywords}
        return Traceable(self.module, arguments, keywords, self.axes)

    def call(self) -> Any:
        """What the module answers."""
        with load_torch().no_grad():
            return self.module(*self.arguments, **self.keywords)


def positional_names(module: Any, num: int) -> list[str]:
    """What ``forward`` calls its first arguments."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return [*named[:num], *(f"input_{index}" for index in range(len(named), num))]


def traceable(value: Any) -> tuple[Traceable, list[str]]:
    """What a user's function returned, in one form, and notes.

    It may return ``(module, example)`` or ``(module, example, axes)``: the example is a tensor, a tuple of tensors, or
    a dictionary by the names of ``forward``'s arguments; ``axes`` names sizes that vary, ``{"x": {0: "batch"}}``.
    Without it the first axis of each input is the batch.

    Raises:
        WrongModule: it returned something else, or weights have no values.
    """
    torch = load_torch()
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3) or not isinstance(value[0], torch.nn.Module):
        what = f"a tuple of {len(value)}" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
        raise WrongModule(
            f"returns {what}, (module, example inputs) is expected; return for example Net().eval(), "
            "(torch.zeros(2, 3, 224, 224),)"
        )
    module, example, notes = value[0], value[1], []
    if isinstance(module, torch.jit.ScriptModule):
        raise WrongModule("returns TorchScript, which torch's exporter does not take; return the module it was made of")
    arguments = (
        (example,) if isinstance(example, torch.Tensor) else tuple(example) if not isinstance(example, dict) else ()
    )
    keywords = dict(example) if isinstance(example, dict) else {}
    for position, tensor in enumerate([*arguments, *keywords.values()]):
        if not isinstance(tensor, torch.Tensor):
            raise WrongModule(
                f"example input {position} is a {type(tensor).__name__}, a torch tensor is expected; return a tensor, "
                "a tuple of tensors, or a dict of them"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            raise WrongModule(f"weight '{name}' has no values (device meta); load the weights before you return it")
    if any(part.training for part in module.modules()):
        notes.append("export: the PyTorch module was in training mode; it was set to eval()")
    network = Traceable(
        module.cpu().eval(), tuple(t.cpu() for t in arguments), {n: t.cpu() for n, t in keywords.items()}, {}
    )
    axes = value[2] if len(value) == 3 else _batch_axes(network.inputs())
    return _with_axes(network, axes), notes


def _batch_axes(inputs: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    sizes = {name: tensor.shape[0] if tensor.ndim else None for name, tensor in inputs.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        listed = ", ".join(f"'{name}' {tuple(tensor.shape)}" for name, tensor in inputs.items()) or "none"
        raise WrongModule(
            f"the example inputs have no batch in common ({listed}); return a third item that names the sizes that "
            'vary, such as {"x": {0: "batch"}}'
        )
    return {name: {0: BATCH} for name in inputs}


def _with_axes(network: Traceable, axes: Any) -> Traceable:
    """With those sizes free, none of which is 1 in the example: torch takes a 1 for a constant."""
    torch, inputs = load_torch(), network.inputs()
    is_axes = isinstance(axes, Mapping) and all(isinstance(each, Mapping) for each in axes.values())
    if not is_axes or not all(str(name).isidentifier() for each in axes.values() for name in each.values()):
        raise WrongModule(
            f'the third item is {axes!r:.80}, names of sizes are expected, such as {{"x": {{0: "batch"}}}}'
        )
    for name, each in axes.items():
        if name not in inputs:
            raise WrongModule(
                f"the third item names '{name}', forward takes {', '.join(map(repr, inputs))}; correct it"
            )
        for axis in each:
            if not isinstance(axis, int) or not 0 <= axis < inputs[name].ndim:
                raise WrongModule(
                    f"the third item names axis {axis!r} of '{name}', which has {inputs[name].ndim}; correct it"
                )
    longer = dict(inputs)
    for name, each in axes.items():
        for axis in each:
            if longer[name].shape[axis] == 1:
                longer[name] = torch.cat([longer[name]] * 2, dim=axis)
    widened = network.with_inputs(longer)
    return Traceable(
        widened.module, widened.arguments, widened.keywords, {name: dict(each) for name, each in axes.items()}
    )


def program_from_module(network: Traceable) -> Any:
    """The module as an ``ExportedProgram`` that answers as it does, at two sizes of what varies.

    Raises:
        WrongModule: the module fails on its example inputs.
        EngineError: torch cannot export it, or what it exported answers something else.
    """
    _called(network, "on the example inputs")
    every = every_size({name for each in network.axes.values() for name in each.values()})
    program, sizes = _traced(network, every, lambda text: list(narrower(text, every)))
    ports_of(program)
    _check_same(network, program, sizes.steps)
    return program


def _traced(
    network: Traceable, sizes: VaryingSizes, others: Callable[[str], list[VaryingSizes]]
) -> tuple[Any, VaryingSizes]:
    """torch's program, and the sizes it is for: ``sizes``, or the first of the ``others``, by torch's refusal."""
    try:
        return _program(network, sizes.dims), sizes
    except Exception as error:  # Of many types.
        proposed = others(str(error))
        if not proposed:
            raise EngineError(_not_exported(error)) from error
        return _traced(network, proposed[0], lambda _text: proposed[1:])


def _program(network: Traceable, dims: Mapping[str, Any]) -> Any:
    """torch's program, with these sizes that vary."""
    shapes = {
        name: {axis: dims[size] for axis, size in network.axes.get(name, {}).items()} or None
        for name in network.inputs()
    }
    positional = tuple(list(shapes.values())[: len(network.arguments)])
    shapes_in_order = (*positional, *(shapes[name] for name in network.keywords))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_torch().export.export(
            network.module, network.arguments, dict(network.keywords), dynamic_shapes=shapes_in_order
        )


def _called(network: Traceable, where: str) -> Any:
    try:
        return network.call()
    except Exception as error:  # A user's code.
        raise WrongModule(
            f"forward raised {type(error).__name__} {where} ({first_sentence(error)}){_line(error)}; fix it"
        ) from error


def _check_same(network: Traceable, program: Any, steps: Mapping[str, int]) -> None:
    """That the program answers as the module, on the example and where each size that varies is a step more."""
    torch = load_torch()
    exported = program.module(check_guards=False)
    longer = dict(network.inputs())
    for name, each in network.axes.items():
        for axis, size in each.items():
            longer[name] = torch.cat([longer[name], longer[name].narrow(axis, 0, steps[size])], dim=axis)
    examples = [network, network.with_inputs(longer)] if network.axes else [network]
    for example in examples:
        sizes = ", ".join(f"'{name}' {tuple(tensor.shape)}" for name, tensor in example.inputs().items())
        expected = torch.utils._pytree.tree_leaves(
            _called(example, f"on inputs of {sizes}, so a size is written into it")
        )
        try:
            with torch.no_grad():
                answers = torch.utils._pytree.tree_leaves(exported(*example.arguments, **example.keywords))
        except Exception as error:  # Of many types.
            raise EngineError(
                f"torch's exported program fails on inputs of {sizes} ({first_sentence(error)}): a size is written "
                "into the network; take it from the input's shape"
            ) from error
        for index, (wanted, answer) in enumerate(zip(expected, answers)):
            if isinstance(wanted, torch.Tensor) and not _are_close(torch, wanted, answer):
                raise EngineError(
                    f"torch's exported program answers otherwise than the module on inputs of {sizes} (output {index}"
                    "): something of the example was written into it, or the network draws random numbers; make it "
                    "depend on its inputs alone"
                )


def _are_close(torch: Any, wanted: Any, answer: Any) -> bool:
    if wanted.shape != answer.shape:
        return False
    if not wanted.dtype.is_floating_point:
        return bool((wanted == answer).all())
    finite = wanted[torch.isfinite(wanted)].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    return bool(torch.allclose(wanted, answer, rtol=RELATIVE, atol=ABSOLUTE * largest, equal_nan=True))


def _not_exported(error: BaseException) -> str:
    text = str(error)
    line = _line(error)
    if "specialized" in text or "ConstraintViolation" in type(error).__name__:
        fixed = re.search(r"Constraints violated \((.*?)\)|marked (.*? as dynamic.*?)[\n.]", text)
        what = next(filter(None, fixed.groups()), first_sentence(error)) if fixed else first_sentence(error)
        return (
            f"a size that varies is written into the network ({what}){line}; take it from the input's shape, or return "
            "as a third item the sizes that do vary, {} for none"
        )
    if derived := DERIVED.findall(text):
        return (
            f"not every size of {' and of '.join(name for name, _ in derived)} can be exported (torch would have "
            f"{', '.join(f'{name} = {how}' for name, how in derived)}){line}; leave it out of the third item, so that "
            "it is the example's, or let the network take every size"
        )
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return (
            f"torch cannot export it: what it does depends on values ({first_sentence(error)}){line}; use torch.where "
            "or torch.cond"
        )
    return f"torch cannot export it ({first_sentence(error)}){line}; change that in the network"


def _line(error: BaseException) -> str:
    """Where in the user's code it happened; empty if nowhere."""
    library = (str(Path(load_torch().__file__).parent), sysconfig.get_path("stdlib"), str(Path(__file__).parent))
    where = ""
    seen: BaseException | None = error
    while seen is not None:
        for frame in traceback.extract_tb(seen.__traceback__):
            if not frame.filename.startswith((*library, "<")):
                where = f", at {Path(frame.filename).name}:{frame.lineno}: {frame.line}"
        seen = seen.__cause__
    return where


def onnx_from_program(program: Any, axes: Mapping[str, Mapping[int, str]], opset: int) -> onnx.ModelProto:
    """The program in ONNX, of ``opset`` or of 18 if that is later; tensors are called as in ``ports_of``.

    Args:
        program: as ``program_from_module`` or ``load_program`` return it.
        axes: names for sizes that vary; where there is none, the first axis is ``batch``.
        opset: of ONNX's operators.

    Raises:
        EngineError: torch's exporter knows no operators for it.
    """
    torch, ports = load_torch(), ports_of(program)
    names = [[port.name for port in side] for side in (ports.inputs, ports.outputs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=max(opset, LEAST_OPSET),
                input_names=names[0],
                output_names=names[1],
                verbose=False,
            )
            model: onnx.ModelProto = converted.model_proto
        except Exception as error:  # Of many types.
            raise EngineError(_not_converted(error)) from error
    wanted = {port.name for side in (ports.inputs, ports.outputs) for port in side}
    written = {value.name for value in (*model.graph.input, *model.graph.output)}
    if wanted != written:
        raise EngineError(
            f"torch's exporter lost '{min(wanted ^ written)}' of the inputs and outputs; take it out of forward"
        )
    _rename_sizes(model, _names_of_sizes(program, axes))
    _forget_where_from(model)
    return model


def _names_of_sizes(program: Any, axes: Mapping[str, Mapping[int, str]]) -> dict[str, str]:
    """torch's symbol or expression for a size of the inputs -> its name."""
    names: dict[str, str] = {}
    for port in ports_of(program).inputs:
        for axis, symbol in port.symbols().items():
            default = BATCH if axis == 0 else f"{port.name}_{axis}"
            names.setdefault(symbol, axes.get(port.name, {}).get(axis, default))
    return names


def sizes_in_steps(program: Any, axes: Mapping[str, Mapping[int, str]]) -> list[str]:
    """Sentences on the sizes that may not be every number."""
    names = _names_of_sizes(program, axes)
    return [
        f"export: the size '{name}' has to be {words}, as torch traced the network for no others"
        for symbol, name in names.items()
        if (words := in_steps(symbol, names)) is not None
    ]


def _not_converted(error: BaseException) -> str:
    seen: BaseException = error
    while seen.__cause__ is not None:
        seen = seen.__cause__
    unknown = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", f"{error}\n{seen}")
    if unknown:
        return f"ONNX has no operator for torch's {unknown[1]}; write the network without it"
    return f"torch's exporter cannot write it in ONNX ({first_sentence(seen)}){_line(seen)}; change that in the network"


def _rename_sizes(model: onnx.ModelProto, symbols: Mapping[str, str]) -> None:
    """Symbols of sizes by the names of their meaning, also within expressions: ``2*s56`` as a whole first."""
    whole = {_plain(symbol): name for symbol, name in symbols.items()}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.HasField("dim_param"):
                written = dimension.dim_param
                in_words = re.sub(r"\w+", lambda word: symbols.get(word[0], word[0]), written)
                dimension.dim_param = whole.get(_plain(written), in_words)


def _plain(expression: str) -> str:
    return expression.replace(" ", "").strip("()")


def _forget_where_from(model: onnx.ModelProto) -> None:
    """Equal networks, equal bytes: torch notes files and lines of the user's code at each node."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""


def describe_tensor(tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
    """The type, shape and bytes of a tensor's values."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return dtype_name(tensor.dtype), tuple(tensor.shape), flat.view(load_torch().uint8).numpy().tobytes()
