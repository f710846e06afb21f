"""What a signature of a SavedModel does beside computing its outputs: write variables, touch files, run Python."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backends import tensorflow
from pipeline.errors import ConfigError, StageError

OUTSIDE = frozenset({
    "EagerPyFunc", "MatchingFiles", "PyFunc", "PyFuncStateless", "ReadFile", "Restore", "RestoreSlice", "RestoreV2",
    "Save", "SaveSlices", "SaveV2", "WriteAudioSummary", "WriteFile", "WriteGraphSummary", "WriteHistogramSummary",
    "WriteImageSummary", "WriteRawProtoSummary", "WriteScalarSummary", "WriteSummary",
})  # fmt: skip
"""Operators of TensorFlow that read or write files, or call Python of the process that saved the model."""
AT_LOAD = OUTSIDE - {"Restore", "RestoreSlice", "RestoreV2"}
"""Of these, what loading alone must not do: it reads the variables' files."""
INITIALIZER, INITIALIZERS_OF_1 = "__saved_model_init_op", ("saved_model_main_op", "legacy_init_op")
"""The signature, and in TensorFlow 1 the collections, of what is run once the variables are restored."""
OF_RESOURCES = ("_create_resource", "_initialize", "_destroy_resource")
"""Names by which the objects of a SavedModel hold functions that are run without being asked for."""
WRITES = ("Assign", "ResourceScatter", "ResourceApply", "ScatterUpdate", "ScatterAdd", "ScatterSub")
"""How the names of operators begin that write a variable."""
READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd")


@dataclass(frozen=True)
class _Body:
    """The nodes of a graph or a function, by name."""

    nodes: dict[str, Any]

    def reached_from(self, names: Iterable[str]) -> dict[str, Any]:
        """The nodes that these depend on, and themselves."""
        reached: dict[str, Any] = {}
        waiting = [_node_of(name) for name in names]
        while waiting:
            name = waiting.pop()
            if name in self.nodes and name not in reached:
                reached[name] = self.nodes[name]
                waiting += [_node_of(each) for each in self.nodes[name].input]
        return reached


def check_side_effects(path: Path, signature: str, allow: Collection[str]) -> list[str]:
    """Sentences about updates of variables that ONNX leaves out, and on which no output depends.

    Args:
        path: the SavedModel folder; TensorFlow must be importable.
        signature: the name of one that it has.
        allow: operator types that touch files or run Python, and may be there nevertheless.

    Raises:
        ConfigError: there is one that is not in ``allow``.
        StageError: what it writes to a variable is read again, so that the outputs depend on it.
    """
    graph = tensorflow.serving_graph(path)
    functions = {each.signature.name: each for each in graph.graph_def.library.function}
    outputs = [info.name for info in graph.signature_def[signature].outputs.values()]
    bodies = [_Body({node.name: node for node in graph.graph_def.node})]
    bodies = [_Body(bodies[0].reached_from(outputs))]
    called = _reached_functions(_called(bodies[0], functions), functions)
    bodies += called.values()
    _check_outside(f"{path}: signature '{signature}'", bodies, OUTSIDE - set(allow), "run")
    _check_outside(f"{path}: the SavedModel", _bodies_at_load(graph, functions), AT_LOAD - set(allow), "loaded")
    return _updates(path, signature, bodies, called)


def _check_outside(where: str, bodies: Iterable[_Body], refused: Collection[str], when: str) -> None:
    for body in bodies:
        for node in body.nodes.values():
            if node.op in refused:
                raise ConfigError(
                    f"{where} has the operator {node.op} (node '{node.name}'), which reads or writes files, or runs "
                    f"Python, when the model is {when}; if you trust the model, write [export] "
                    f'allow = ["{node.op}"], or --allow {node.op}'
                )


def _bodies_at_load(graph: Any, functions: dict[str, Any]) -> list[_Body]:
    """What runs as TensorFlow loads the model: what initializes it, and what makes and frees its resources."""
    nodes = _Body({node.name: node for node in graph.graph_def.node})
    entries = [info.name for info in graph.signature_def[INITIALIZER].outputs.values()]
    entries += [name for key in INITIALIZERS_OF_1 for name in graph.collection_def[key].node_list.value]
    objects = graph.object_graph_def.nodes
    children = [child for each in objects for child in each.children if child.local_name in OF_RESOURCES]
    named = [objects[child.node_id] for child in children]
    names = [name for each in named for name in each.function.concrete_functions]
    names += [each.bare_concrete_function.concrete_function_name for each in named]
    body = _Body(nodes.reached_from(entries))
    names = [*(name for name in names if name in functions), *_called(body, functions)]
    return [body, *_reached_functions(names, functions).values()]


def _updates(path: Path, signature: str, bodies: list[_Body], called: dict[str, _Body]) -> list[str]:
    """Sentences on updates that are only left out; StageError where an output may depend on one."""
    writing = _writing_functions(called)
    sentences = []
    for body in bodies:
        writers = {
            name: node for name, node in body.nodes.items() if _writes(node) or not writing.isdisjoint(_names(node))
        }
        for node in body.nodes.values():
            after = [_node_of(name) for name in node.input if name.startswith("^") and _node_of(name) in writers]
            if node.op in READS and after:
                raise StageError(
                    f"{path}: signature '{signature}' updates a variable ('{after[0]}') and reads it again "
                    f"('{node.name}'); ONNX has no state, so that the converted model would answer otherwise; save the "
                    "model in inference mode, without the update"
                )
        sentences += [
            f"export: '{node.name}' ({node.op}) updates a variable, which ONNX cannot; no output depends on it"
            for node in writers.values()
            if _writes(node)
        ]
    return sentences


def _writing_functions(called: dict[str, _Body]) -> set[str]:
    """The functions that write a variable, or call one that does."""
    writing: set[str] = set()
    while True:
        more = {
            name
            for name, body in called.items()
            if any(_writes(node) or not writing.isdisjoint(_names(node)) for node in body.nodes.values())
        }
        if more == writing:
            return writing
        writing = more


def _reached_functions(names: Iterable[str], functions: Mapping[str, Any]) -> dict[str, _Body]:
    """The functions of these names and all that they call, by name."""
    reached: dict[str, _Body] = {}
    waiting = list(names)
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached[name] = _Body({node.name: node for node in functions[name].node_def})
            waiting += _called(reached[name], functions)
    return reached


def _called(body: _Body, functions: Collection[str]) -> Iterator[str]:
    for node in body.nodes.values():
        yield from (name for name in _names(node) if name in functions)


def _names(node: Any) -> set[str]:
    """The functions that a node names in its attributes."""
    names = set()
    for value in node.attr.values():
        names |= {value.func.name} if value.HasField("func") else {each.name for each in value.list.func}
    return names


def _writes(node: Any) -> bool:
    return bool(node.op.startswith(WRITES))


def _node_of(name: str) -> str:
    return name.removeprefix("^").partition(":")[0]
