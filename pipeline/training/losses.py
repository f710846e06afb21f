"""How far answers are from the teacher's, or from labels; both in the form that the network's head asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from calibration.data.user_function import load_function
from calibration.errors import DataError
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.training.heads import Head, class_axis, meant_heads
from pipeline.training.options import Training, TrainingAim

Tensors: TypeAlias = Mapping[str, Any]
Loss: TypeAlias = Callable[[Tensors, Tensors, Any], Any]
"""(answers, the teacher's, labels or None) -> a number."""


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


LabelKind: TypeAlias = Literal["classes", "shares", "events", "values"]
LABEL_WORDS: dict[LabelKind, str] = {
    "classes": "cross entropy with labels, which are numbers of classes",
    "shares": "cross entropy with labels, which are probabilities of classes",
    "events": "cross entropy with labels, which are probabilities of events",
    "values": "squared error to labels, which are values",
}


def label_kind(head: Head, answers: Array, labels: Array) -> LabelKind:
    """How a head's answers (N, …) are compared with labels (N, …).

    Raises:
        DataError: labels are not as the answers are.
    """
    is_alike = labels[0].size == answers[0].size
    if head.kind != "sigmoid" and class_axis(answers, labels, head.axis) is not None:
        return "classes"
    if is_alike:
        return {"softmax": "shares", "sigmoid": "events", "values": "values"}[head.kind]  # type: ignore[return-value]
    limits = f" from {labels.min()} to {labels.max()}" if labels.dtype.kind in "biu" else ""
    raise DataError(
        f"labels are {labels.shape}{limits}, the answers in '{head.tensor}' {answers.shape}; give the number of one "
        "class for each sample, or as many numbers as answers, or a loss of your own as module:function"
    )


def label_loss(torch: Any, head: Head, labels: Array, answers: Array) -> Loss:
    """Cross entropy of classes, or of events; squared error for the rest.

    Args:
        torch: the module.
        head: with its kind as it was judged.
        labels: all of them.
        answers: the teacher's of that head.

    Raises:
        DataError: labels are not as the answers are.
    """
    functional, kind = torch.nn.functional, label_kind(head, answers, labels)
    axis = class_axis(answers, labels, head.axis) if kind == "classes" else None

    def loss(answers: Tensors, _expected: Tensors, labels: Any) -> Any:
        x = answers[head.tensor]
        if axis is not None:
            scores = x.movedim(axis, -1)
            return functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), labels.long().reshape(-1))
        targets = labels.reshape(x.shape).to(x.dtype)
        if kind == "shares":
            return -(targets * torch.log_softmax(x, head.axis)).sum(head.axis).mean()
        if kind == "events":
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


@dataclass(frozen=True)
class Compared:
    """What answers are compared with, and as what."""

    heads: Sequence[Head]
    teacher: Mapping[str, Array]
    """Its answers on all samples, by tensor."""
    labels: Array | None


def loss_of(torch: Any, options: Training, aim: TrainingAim, compared: Compared) -> Loss:
    """The loss that the options name.

    Raises:
        ConfigError: labels are compared, and there are several outputs of which none was named.
        DataError: there is no such function; or labels are not as answers are.
    """
    if ":" in options.loss:
        return own_loss(options.loss, aim)
    heads, answers = compared.heads, compared.teacher
    by_teacher = teacher_loss(torch, heads, {head.tensor: float(answers[head.tensor].var()) for head in heads})
    if options.loss == "teacher" or compared.labels is None:
        return by_teacher
    head = labelled_head(heads, aim.output)
    by_labels = label_loss(torch, head, compared.labels, answers[head.tensor])
    if options.loss == "labels":
        return by_labels
    return lambda x, y, labels: by_teacher(x, y, labels) + by_labels(x, y, labels)


def labelled_head(heads: Sequence[Head], output: str) -> Head:
    """The head that the labels are for.

    Raises:
        ConfigError: several could be meant.
    """
    meant = meant_heads(heads, output)
    if len(meant) != 1:
        raise ConfigError(
            f"labels are for one output, of {', '.join(head.output or head.tensor for head in heads)}; name it as "
            "output in [data], or by --output"
        )
    return meant[0]


def loss_words(options: Training, aim: TrainingAim, compared: Compared) -> tuple[str, ...]:
    """A sentence for each part of the loss: what is compared with what, and why so."""
    if ":" in options.loss:
        return (f"{options.loss}, the user's function",)
    words = []
    if options.loss != "labels":
        for head in compared.heads:
            axis = "" if head.axis == -1 else f" along axis {head.axis}"
            what = {
                "softmax": f"divergence of the classes' probabilities{axis} from the teacher's (KL)",
                "sigmoid": "cross entropy of the events' probabilities with the teacher's (BCE)",
                "values": "squared error by the variance of the teacher's answers (MSE)",
            }[head.kind]
            words.append(f"'{head.tensor}': {what}: {head.why}")
    if options.loss != "teacher" and compared.labels is not None:
        head = labelled_head(compared.heads, aim.output)
        words.append(
            f"'{head.tensor}': {LABEL_WORDS[label_kind(head, compared.teacher[head.tensor], compared.labels)]}"
        )
    return tuple(words)
