"""Ask an installed parser node by node: TensorRT's, which needs a GPU to be there, or that of TensorRT for RTX.

A parser tells of all operators that it does not know at once, but of what it cannot import only the first. So it is
asked again, each time without the nodes that it refused, until it takes all the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
from onnx import TensorProto

from engines.contract import BuildOptions
from engines.errors import EngineError, Unavailable
from engines.nvinfer.builder import logger, parser_for, register_plugins
from engines.nvinfer.builder_config import network_flags
from engines.nvinfer.capability import capability_of, typing_for
from engines.nvinfer.error_hints import hint
from engines.nvinfer.plugins import load_plugins
from engines.onnx_model import reduction_by_input
from engines.plugin_library import libraries_named, library_at
from engines.support.answers import InputShapes, SupportAnswer
from engines.support.graph import Asked, asked_about, name_of, reads
from engines.support.parser_limits import limits, release_of
from engines.support.restrictions import NEVER

MOST_ROUNDS = 64
"""Of asking again."""
NOT_KNOWN = "false"
"""What a parser says of an operator that it knows of and never takes."""
FAILED = "Assertion failed: "
NO_NODE = -1
"""Whose words are about the model, or an input of it."""


@dataclass
class _Rest:
    """A part of a model: its nodes by the numbers that they have in the whole one."""

    numbers: list[int]
    model: onnx.ModelProto
    unasked: set[int] = field(default_factory=set)
    """Nodes that are left out since the shapes of what they read are not known."""


def answer_by_parser(
    trt: Any, path: Path, shapes: InputShapes, not_built: Mapping[str, str] = MappingProxyType({})
) -> SupportAnswer:
    """What the parser of the module ``trt`` says of each node of the model in ``path``.

    ``not_built``: operators that the parser reads although the builder has nothing that runs them, and half a sentence
    on that.

    Raises:
        Unavailable: its builder does not start, as without a driver.
        EngineError: it is no ONNX model, or the parser refuses it without naming a node.
    """
    asked = asked_about(path, shapes)
    asker = _Parser(trt, path)
    reasons = dict(asker.refused(asked.model))
    unasked: set[int] = set()
    for _ in range(MOST_ROUNDS if reasons else 0):
        rest = _without(asked, reasons)
        unasked |= rest.unasked
        more = {rest.numbers[number]: words for number, words in asker.refused(rest.model).items()}
        if not more:
            break
        reasons.update(more)
    notes = [_unasked_note(asked, sorted(unasked - reasons.keys()))] if unasked - reasons.keys() else []
    explained = {number: _explained(asked.nodes[number], words) for number, words in reasons.items()}
    for number, node in enumerate(asked.nodes):
        if node.op_type in not_built and not node.domain:
            explained.setdefault(number, not_built[node.op_type])
    answer = asked.answer(f"the parser of {release_of(trt)}", explained, notes)
    return replace(answer, refusals=limits(trt, asked.opset, reduction_by_input(asked.model.graph)))


class _Parser:
    """One builder, with a new network for each question."""

    def __init__(self, trt: Any, path: Path) -> None:
        self._trt, self._path = trt, path
        log, self._tail = logger(trt)
        self._networks: list[Any] = []
        load_plugins(trt, tuple(map(library_at, libraries_named())), self._tail.text)
        register_plugins(trt)
        try:
            self._builder = trt.Builder(log)
        except TypeError as error:  # what pybind makes of a null pointer
            raise Unavailable(
                f"{trt.__name__}: its parser does not start without a driver and a GPU ({self._tail.text()}); ask with "
                "--generation for the list of its version"
            ) from error

    def refused(self, model: onnx.ModelProto) -> Mapping[int, str]:
        """The parser's words on each node that it does not take, by number in that model; none if it takes all."""
        parser = self._parser()
        self._tail.clear()
        takes_all, taken = self._supports(parser, model)
        if takes_all or not model.graph.node:
            return {}
        inside = {int(number) for nodes in taken for number in nodes}
        words = dict(self._words(parser))
        refused = [number for number in range(len(model.graph.node)) if number not in inside]
        anyway = words.pop(NO_NODE, "") or self._tail.text()
        refused = refused or [number for number in words if number < len(model.graph.node)] or _readers(model.graph)
        refused = refused or self._first_refused(model)
        if not refused:
            raise EngineError(
                f"{self._path}: {self._trt.__name__} refuses the model, and names no node ({anyway.strip(chr(0))})"
            )
        return {number: words.get(number, anyway) for number in refused}

    def _first_refused(self, model: onnx.ModelProto) -> list[int]:
        """Of a model that is refused without a node being named: the node up to which it is taken no more, if any."""
        low, high = 0, len(model.graph.node) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._takes(_first_nodes(model, middle + 1)) else (low, middle)
        return [low] if low == 0 or self._takes(_first_nodes(model, low)) else []

    def _takes(self, model: onnx.ModelProto) -> bool:
        """Whether the parser takes it whole."""
        return self._supports(self._parser(), model)[0]

    def _supports(self, parser: Any, model: onnx.ModelProto) -> tuple[bool, list[Any]]:
        """Whether the parser takes it whole, and the numbers of the nodes of each part that it takes."""
        data, where = model.SerializeToString(), str(self._path)
        if capability_of(self._trt).parser_parts:
            takes_all = parser.supports_model_v2(data, where)
            return bool(takes_all), [parser.get_subgraph_nodes(index) for index in range(parser.num_subgraphs)]
        takes_all, parts = parser.supports_model(data, where)  # up to 10.0
        return bool(takes_all), [nodes for nodes, _ in parts]

    def _parser(self) -> Any:
        """With a network of its own."""
        flags = network_flags(self._trt, capability_of(self._trt), typing_for(capability_of(self._trt), BuildOptions()))
        self._networks.append(self._builder.create_network(flags))
        return parser_for(self._trt, self._networks[-1], BuildOptions())

    def _words(self, parser: Any) -> Iterator[tuple[int, str]]:
        """By node, the name of that in a body before a NUL; those about no node under ``NO_NODE``."""
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            text = " ".join(error.desc().split())
            tells_node = hasattr(error, "node_operator")
            if text in (NOT_KNOWN, ""):
                text = f"{error.node_operator()} is not supported in TensorRT" if tells_node else self._tail.text()
            name = error.node_name() if tells_node else ""
            yield max(error.node(), NO_NODE), f"{name}\0{text}"


def _explained(node: onnx.NodeProto, words: str) -> str:
    """What the parser's words mean, and what to do; and the words themselves."""
    inner, _, text = words.rpartition("\0")
    where = f"in its body, at '{inner}': " if inner and inner != node.name else ""
    text = text[len(FAILED) :] if text.startswith(FAILED) else text
    meaning = hint(f"{node.op_type}: {text}")
    return f"{where}{meaning} ({text})" if meaning else f"{where}{text}"


def _without(asked: Asked, refused: Mapping[int, str]) -> _Rest:
    """The model without these nodes; what they make becomes an input of it, where its shape is known."""
    types, ranks = asked.types, asked.ranks
    infos = asked.infos
    inputs: dict[str, onnx.ValueInfoProto] = {}
    lost: set[str] = set()
    rest = _Rest([], onnx.ModelProto())
    for number, node in enumerate(asked.nodes):
        names = set(reads(node))
        if number not in refused and not names & lost:
            rest.numbers.append(number)
            continue
        if number not in refused:
            rest.unasked.add(number)
        for name in filter(None, node.output):
            if name in infos and types.get(name, TensorProto.UNDEFINED) and name in ranks and number in refused:
                inputs[name] = infos[name]
            else:
                lost.add(name)
    rest.model.CopyFrom(asked.model)
    graph = rest.model.graph
    del graph.node[:]
    graph.node.extend(asked.nodes[number] for number in rest.numbers)
    made = {name for node in graph.node for name in node.output if name}
    left = set(rest.numbers)
    wanted = {name for number, node in enumerate(asked.nodes) if number not in left for name in reads(node)}
    wanted |= {value.name for value in asked.model.graph.output}
    read = {name for node in graph.node for name in reads(node)}
    feeds = [value for value in (*graph.input, *inputs.values()) if value.name in read]
    del graph.input[:]
    graph.input.extend(feeds)
    del graph.output[:]
    graph.output.extend(infos[name] for name in sorted(wanted & made) if name in types and name in infos)
    return rest


def _first_nodes(model: onnx.ModelProto, number: int) -> onnx.ModelProto:
    """The model of its first so many nodes; of its outputs those that they make."""
    first = onnx.ModelProto()
    first.CopyFrom(model)
    del first.graph.node[number:]
    made = {name for node in first.graph.node for name in node.output}
    outputs = [value for value in first.graph.output if value.name in made]
    del first.graph.output[:]
    first.graph.output.extend(outputs)
    return first


def _readers(graph: onnx.GraphProto) -> list[int]:
    """The nodes that read an input of a type that no parser has: it names neither the one nor the other."""
    inputs = {value.name for value in graph.input if value.type.tensor_type.elem_type in NEVER}
    return [number for number, node in enumerate(graph.node) if inputs & set(reads(node))]


def _unasked_note(asked: Asked, numbers: list[int]) -> str:
    first = name_of(asked.nodes[numbers[0]])
    return (
        f"{len(numbers)} nodes, '{first}' the first, were judged by their operator alone: they follow a node whose "
        "output has no known shape."
    )
