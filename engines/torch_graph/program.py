"""A network as torch exports it (``ExportedProgram``): read from a file, its tensors by name, and called."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.contract import DYNAMIC, Array, TensorSpec
from engines.errors import EngineError, Unavailable
from engines.torch_graph.archive import check_archive, write_plain_copy
from engines.torch_graph.library import load_torch, load_torchvision


@dataclass(frozen=True)
class ProgramPort:
    """A tensor that goes in or comes out: its place among all leaves of the arrangement, and what it is."""

    index: int
    name: str
    value: Any
    """torch's description: a tensor without values, whose sizes may be symbols."""

    def spec(self) -> TensorSpec:
        """With ``DYNAMIC`` for sizes that are symbols."""
        sizes = tuple(size if type(size) is int else DYNAMIC for size in self.value.shape)
        return TensorSpec(self.name, dtype_name(self.value.dtype), sizes)

    def symbols(self) -> dict[int, str]:
        """Axis -> the symbol that is its size, of those that have one."""
        return {axis: str(size) for axis, size in enumerate(self.value.shape) if type(size) is not int}


@dataclass(frozen=True)
class ProgramPorts:
    """All tensors of a program, in its order. What is None goes in as None, and does not come out."""

    inputs: tuple[ProgramPort, ...]
    outputs: tuple[ProgramPort, ...]


def dtype_name(dtype: Any) -> str:
    """Of torch's type, as numpy calls it."""
    name = str(dtype).removeprefix("torch.")
    return {"half": "float16", "float": "float32", "double": "float64"}.get(name, name)


def load_program(path: Path) -> Any:
    """The program in a ``.pt2`` file. Nothing of the file is run: see ``archive``.

    Raises:
        Unavailable: torch is not installed, or older than the one that wrote the file; or torchvision is not installed,
            and the program calls its operators.
        UnsafeArchive: the file holds what would be run, or is none.
        EngineError: torch cannot read it.
    """
    torch = load_torch()
    version = check_archive(path)
    with tempfile.TemporaryDirectory(prefix="trtforge-") as folder:
        copy = Path(folder) / "program.pt2"
        if write_plain_copy(path, copy):
            load_torchvision()
        try:
            return torch.export.load(str(copy))
        except Exception as error:  # Of many types.
            here = torch.__version__
            newer = version and _numbers(version) > _numbers(here)
            what = f"was saved by torch {version}, newer than {here} here" if newer else "cannot be read by torch"
            do = f"pip install 'torch>={version.partition('+')[0]}', or save it again" if newer else "save it again"
            kind = Unavailable if newer else EngineError
            raise kind(f"{path}: {what} ({first_sentence(error)}); {do}") from error


def save_program(program: Any, path: Path) -> None:
    """Write a ``.pt2`` file."""
    load_torch().export.save(program, str(path))


def ports_of(program: Any) -> ProgramPorts:
    """The tensors by name.

    Inputs are called as the arguments of ``forward``, outputs by the keys of the dictionary that it returns, else
    ``output``, or ``output_0``, ``output_1``, …

    Raises:
        EngineError: one is no tensor of real numbers.
    """
    tree = load_torch().utils._pytree
    nodes = {node.name: node for node in program.graph.nodes}
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    arguments, keywords = tree.tree_unflatten(list(range(in_spec.num_leaves)), in_spec)
    names = program.module_call_graph[0].signature.forward_arg_names or []
    names = [*names, *(f"input_{index}" for index in range(len(names), len(arguments)))]
    listed = [*zip(names, arguments), *keywords.items()]
    by_index = {index: name for prefix, part in listed for index, name in _leaves(part, prefix)}
    inputs = _ports(program.graph_signature.user_inputs, by_index, nodes, "input")
    result = tree.tree_unflatten(list(range(out_spec.num_leaves)), out_spec)
    by_index = dict(_leaves(result, "" if isinstance(result, Mapping) else "output"))
    taken = {port.name for port in inputs}
    by_index = {index: f"{name}_out" if name in taken else name for index, name in by_index.items()}
    return ProgramPorts(inputs, _ports(program.graph_signature.user_outputs, by_index, nodes, "output"))


def _leaves(part: Any, prefix: str) -> Iterator[tuple[int, str]]:
    """Each leaf of an arrangement of indices, and a name that tells where it is."""
    if isinstance(part, int):
        yield part, prefix or "output"
        return
    for key, inner in part.items() if isinstance(part, Mapping) else enumerate(part):
        yield from _leaves(inner, f"{prefix}_{key}" if prefix else str(key))


def _ports(values: Any, names: Mapping[int, str], nodes: Mapping[str, Any], what: str) -> tuple[ProgramPort, ...]:
    ports = []
    for index, value in enumerate(values):
        if value is None:
            continue
        described = nodes[value].meta["val"] if isinstance(value, str) and value in nodes else value
        if not hasattr(described, "dtype"):
            raise EngineError(
                f"{what} '{names[index]}' is a {type(described).__name__}, a tensor is expected; take it out, or make "
                "a tensor of it"
            )
        if described.dtype.is_complex:
            raise EngineError(
                f"{what} '{names[index]}' is {dtype_name(described.dtype)}, which ONNX's operators do not take; use "
                "torch.view_as_real of it"
            )
        ports.append(ProgramPort(index, names[index], described))
    return tuple(ports)


class ProgramCall:
    """Calls a program on numpy arrays by name."""

    def __init__(self, program: Any) -> None:
        """Takes the program's weights."""
        self._torch, self.ports = load_torch(), ports_of(program)
        self._spec = program.call_spec.in_spec
        self._module = program.module(check_guards=False)

    def __call__(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Array by input name -> array by output name."""
        tree, torch = self._torch.utils._pytree, self._torch
        leaves: list[Any] = [None] * self._spec.num_leaves
        for port in self.ports.inputs:
            leaves[port.index] = torch.from_numpy(feed[port.name].copy())
        arguments, keywords = tree.tree_unflatten(leaves, self._spec)
        with torch.no_grad():
            values = tree.tree_leaves(self._module(*arguments, **keywords))
        return {port.name: values[port.index].detach().numpy() for port in self.ports.outputs}


def first_sentence(error: BaseException) -> str:
    """What a library says first of its error, in one line."""
    text = str(error).strip() or type(error).__name__
    return next(filter(None, map(str.strip, text.splitlines())))[:300].rstrip(".")


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.partition("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())
