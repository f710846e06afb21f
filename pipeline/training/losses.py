"""How far answers are from the teacher's, or from labels; both in the form that the network's head asks for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import onnx
from onnx import helper

from calibration.data.user_function import load_function
from calibration.errors import DataError
from calibration.graph.answers import MOVING, SQUASHING, answer_tensors
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.training.options import Training, TrainingAim

HeadKind: TypeAlias = Literal["softmax", "sigmoid", "values"]
Tensors: TypeAlias = Mapping[str, Any]
Loss: TypeAlias = Callable[[Tensors, Tensors, Any], Any]
"""(answers, the teacher's, labels or None) -> a number."""


@dataclass(frozen=True)
class Head:
    """A tensor in which answers are compared."""

    tensor: str
    kind: HeadKind
    """The function that the network applies to it at the end."""
    axis: int = -1
    """Of the classes of a softmax."""
    output: str = ""
    """The output of the model that it leads to; empty for a tensor within."""


def heads_of(model: onnx.ModelProto, names: Sequence[str]) -> list[Head]:
    """The tensors in which answers are compared: those named, or where none is, what ``answer_tensors`` finds.

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
        if node.op_type in ("Softmax", "LogSoftmax"):
            axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), -1)
            head = Head(name, "softmax", axis, output)
        elif node.op_type == "Sigmoid":
            head = Head(name, "sigmoid", output=output)
        elif node.op_type in SQUASHING:
            head = Head(name, "values", output=output)
    return head


def teacher_loss(torch: Any, heads: Sequence[Head], spreads: Mapping[str, float]) -> Loss:
    """Kullback-Leibler divergence for a softmax, cross entropy for a sigmoid, squared error by variance for the rest.

    ``spreads``: the variance of the teacher's answers by tensor. The sum over heads, each the mean over all else.
    """
    functional = torch.nn.functional

    def loss(answers: Tensors, expected: Tensors, _labels: Any) -> Any:
        total = 0.0
        for head in heads:
            x, y = answers[head.tensor], expected[head.tensor]
            if x.shape != y.shape:
                raise ConfigError(
                    f"'{head.tensor}': has another shape for each sample, so that answers cannot be compared there; "
                    "name tensors before it as answers"
                )
            if head.kind == "softmax":
                p, q = torch.log_softmax(y, head.axis), torch.log_softmax(x, head.axis)
                total = total + (p.exp() * (p - q)).sum(head.axis).mean()
            elif head.kind == "sigmoid":
                soft = torch.sigmoid(y)
                least = functional.binary_cross_entropy_with_logits(y, soft)  # 0 where both are equal.
                total = total + functional.binary_cross_entropy_with_logits(x, soft) - least
            else:
                total = total + ((x - y) ** 2).mean() / max(spreads[head.tensor], 1e-12)
        return total

    return loss


def label_loss(torch: Any, head: Head) -> Loss:
    """Cross entropy of classes; of a sigmoid against labels of its shape; squared error for the rest."""
    functional = torch.nn.functional

    def loss(answers: Tensors, _expected: Tensors, labels: Any) -> Any:
        x = answers[head.tensor]
        if not labels.is_floating_point() and labels.ndim == x.ndim - 1 and head.kind != "sigmoid":
            axis = head.axis % x.ndim if head.kind == "softmax" else 1
            return functional.cross_entropy(x.movedim(axis, 1), labels.long())
        if labels.numel() != x.numel():
            raise DataError(
                f"labels are {tuple(labels.shape)}, the answers in '{head.tensor}' {tuple(x.shape)}; give one class "
                "for each sample, or as many numbers as answers, or a loss of your own as module:function"
            )
        targets = labels.reshape(x.shape).to(x.dtype)
        if head.kind == "sigmoid":
            return functional.binary_cross_entropy_with_logits(x, targets)
        return ((x - targets) ** 2).mean()

    return loss


def own_loss(name: str, aim: TrainingAim) -> Loss:
    """A user's function, held to giving a number that has a gradient.

    Raises:
        DataError: there is no such function.
    """
    function = load_function(name, aim.folder)

    def loss(answers: Tensors, expected: Tensors, labels: Any) -> Any:
        try:
            value = function(dict(answers), dict(expected), labels)
        except Exception as error:
            raise ConfigError(f"loss '{name}': raised {type(error).__name__} ({error}); correct it") from error
        if not hasattr(value, "backward") or value.numel() != 1:
            raise ConfigError(f"loss '{name}': gave a {type(value).__name__}, a torch tensor of one number is expected")
        return value.reshape(())

    return loss


def loss_of(
    torch: Any, options: Training, aim: TrainingAim, heads: Sequence[Head], answers: Mapping[str, Array]
) -> Loss:
    """The loss that the options name; ``answers``: the teacher's on all samples.

    Raises:
        ConfigError: labels are compared, and there are several outputs of which none was named.
        DataError: there is no such function.
    """
    if ":" in options.loss:
        return own_loss(options.loss, aim)
    by_teacher = teacher_loss(torch, heads, {head.tensor: float(answers[head.tensor].var()) for head in heads})
    if options.loss == "teacher":
        return by_teacher
    by_labels = label_loss(torch, labelled_head(heads, aim.output))
    if options.loss == "labels":
        return by_labels
    return lambda x, y, labels: by_teacher(x, y, labels) + by_labels(x, y, labels)


def labelled_head(heads: Sequence[Head], output: str) -> Head:
    """The head that the labels are for.

    Raises:
        ConfigError: several could be meant.
    """
    meant = [head for head in heads if output in ("", head.output, head.tensor)]
    if len(meant) != 1:
        raise ConfigError(
            f"labels are for one output, of {', '.join(head.output or head.tensor for head in heads)}; name it as "
            "output in [data], or by --output"
        )
    return meant[0]
