"""The tensors in which answers are compared, and whether they are classes, events or plain values."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import onnx
from onnx import helper

from calibration.graph.answers import MOVING, SQUASHING, answer_tensors
from engines.contract import Array
from pipeline.accuracy.metrics import counts_classes
from pipeline.errors import ConfigError
from pipeline.training.options import Training, TrainingAim

HeadKind: TypeAlias = Literal["softmax", "sigmoid", "values"]
KINDS: dict[str, HeadKind] = {"kl": "softmax", "bce": "sigmoid", "mse": "values"}
"""What an option's distance takes answers for."""


@dataclass(frozen=True)
class Head:
    """A tensor in which answers are compared."""

    tensor: str
    kind: HeadKind
    """What they are: scores of classes, of which one is right; scores of events, each by itself; or values."""
    axis: int = -1
    """Of the classes of a softmax."""
    output: str = ""
    """The output of the model that it leads to; empty for a tensor within."""
    why: str = ""
    """What says that they are of this kind."""


def heads_of(model: onnx.ModelProto, names: Sequence[str]) -> list[Head]:
    """The tensors in which answers are compared: those named, or where none is, what ``answer_tensors`` finds.

    Their kinds are what the graph says; ``judged_heads`` knows more.

    Raises:
        ConfigError: there is none, or no tensor of such a name.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    heads = {head.tensor: head for output in model.graph.output if (head := _head(output.name, producers))}
    if not names:
        answers = answer_tensors(model)
        if not answers:
            raise ConfigError("the network has no output of float32 that depends on its inputs: nothing can be learned")
        return [heads.get(name, Head(name, "values")) for name in answers]
    known = {*producers, *(value.name for value in model.graph.input)}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "`polygraphy inspect model --show layers` lists them"
            raise ConfigError(f"answers: the model has no tensor '{name}'; {hint}")
    return [heads.get(name, Head(name, "values")) for name in names]


def tensors_of(heads: Sequence[Head]) -> tuple[str, ...]:
    """Their tensors, each once."""
    return tuple(dict.fromkeys(head.tensor for head in heads))


def _head(output: str, producers: Mapping[str, onnx.NodeProto]) -> Head | None:
    """What is squashed into an output; the output itself where nothing is."""
    name, head = output, Head(output, "values", output=output)
    while name in producers and producers[name].op_type in SQUASHING | MOVING:
        node = producers[name]
        name = node.input[0]
        axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), None)
        if node.op_type in ("Softmax", "LogSoftmax", "ArgMax"):
            default = 0 if node.op_type == "ArgMax" else -1
            why = f"output '{output}' is its {node.op_type}"
            head = Head(name, "softmax", default if axis is None else axis, output, why)
        elif node.op_type == "Sigmoid":
            head = Head(name, "sigmoid", output=output, why=f"output '{output}' is its Sigmoid")
        elif node.op_type in SQUASHING:
            head = Head(name, "values", output=output)
    return head


def judged_heads(
    heads: Sequence[Head], options: Training, aim: TrainingAim, labels: Array | None, answers: Mapping[str, Array]
) -> list[Head]:
    """The heads by all that is known: what the user says, the graph, the metric, labels; in this order.

    Two numbers for a sample may be scores of two classes, or a place in a picture. So what nothing calls classes are
    values, whatever its shape.

    Args:
        heads: as ``heads_of`` found them.
        options: whose ``distance`` is the user's word.
        aim: the metric, and which output it is for.
        labels: those that came with the samples, of any kind; None where there are none.
        answers: the teacher's, by tensor.

    Raises:
        ConfigError: the user wants classes, and which axis is theirs is not known.
    """
    meant = meant_heads(heads, aim.output)
    judged = []
    for head in heads:
        theirs, is_judged = answers[head.tensor], len(meant) == 1 and head == meant[0]
        axis = None if labels is None or not is_judged else class_axis(theirs, labels)
        if options.distance != "auto":
            judged.append(_as_asked(head, KINDS[options.distance], options.distance, theirs, axis))
        elif head.kind != "values":
            judged.append(head)
        elif is_judged and (counts := counts_classes(aim.metric)) is not None:
            judged.append(_by_metric(head, aim.metric, theirs, counts))
        elif axis is not None:
            why = f"labels are numbers of its {theirs.shape[axis]} classes"
            judged.append(replace(head, kind="softmax", axis=axis, why=why))
        else:
            judged.append(replace(head, why="nothing says that it has classes"))
    return judged


def meant_heads(heads: Sequence[Head], output: str) -> list[Head]:
    """The heads that metric and labels may be for."""
    return [head for head in heads if output in ("", head.output, head.tensor)]


def class_axis(answers: Array, labels: Array, first: int = 1) -> int | None:
    """The axis of ``answers`` (N, …) whose places ``labels`` (N, …) are numbers of; None where they are no such.

    It is the one axis that labels lack; both are compared without axes of length 1. Of several that could be it,
    ``first`` is tried first.
    """
    if labels.dtype.kind not in "biu" or not labels.size:
        return None
    wanted, low, high = _sizes(labels.shape), int(labels.min()), int(labels.max())
    for axis in sorted(range(1, answers.ndim), key=lambda axis: axis != first % answers.ndim):
        num = answers.shape[axis]
        others = answers.shape[:axis] + answers.shape[axis + 1 :]
        if num >= 2 and low >= 0 and high < num and _sizes(others) == wanted:
            return axis
    return None


def _sizes(shape: Sequence[int]) -> list[int]:
    """Those of one sample, without axes of length 1."""
    return [size for size in shape[1:] if size != 1]


def _as_asked(head: Head, kind: HeadKind, distance: str, answers: Array, by_labels: int | None) -> Head:
    why = f"distance is {distance}"
    if kind != "softmax" or head.kind == "softmax":
        return replace(head, kind=kind, why=why)
    axes = [axis for axis in range(1, answers.ndim) if answers.shape[axis] > 1]
    if by_labels is None and len(axes) != 1:
        raise ConfigError(
            f"distance is {distance}, but which axis of '{head.tensor}' {answers.shape} has classes is not known: "
            "neither labels nor a Softmax say so; give labels, or a loss of your own as module:function"
        )
    return replace(head, kind=kind, axis=axes[0] if by_labels is None else by_labels, why=why)


def _by_metric(head: Head, metric: str, answers: Array, counts: bool) -> Head:
    axes = [axis for axis in range(1, answers.ndim) if answers.shape[axis] > 1]
    if counts and len(axes) == 1:
        return replace(head, kind="softmax", axis=axes[0], why=f"metric {metric} counts classes")
    return replace(head, why=f"metric {metric} compares values" if not counts else "it is no list of classes")
