"""How a network is trained: what `tune` and `prune` have in common, and what they are told of the network."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from calibration.data.user_function import source_code
from calibration.precision.placement import PlacementOptions
from engines import module_of
from engines.torch_graph import library
from pipeline.artifact import OnnxModel
from pipeline.engine_runner import SIMULATOR
from pipeline.errors import ConfigError
from pipeline.machine.packages import distribution_versions
from pipeline.option import MOST_THREADS, check_bounds, option
from pipeline.stage import Stage

LOSSES = ("teacher", "labels", "both")
Distance: TypeAlias = Literal["auto", "kl", "bce", "mse"]
"""Of answers from the teacher's: Kullback-Leibler divergence of classes, cross entropy of events, squared error."""
TEACHER_RATE, LABELS_RATE, RATE_OF_4_BITS = 0.0001, 0.001, 0.0003
"""Where none is named, relative to the root mean square of a weight: of a network that answers well already, and of
one that learns what it did not know; and of one whose weights have 4 bits, by the teacher's answers. 0.003 and more
were too much for 8 bits, and 0.001 for 4, on each network that was tried."""
TrainingDevice: TypeAlias = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Training(Stage):
    """The options of training by distillation: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015)."""

    loss: str = option(
        "teacher", "teacher: the FP32 network's answers, no labels needed; labels, both, or module:function"
    )
    distance: Distance = option(
        "auto",
        "from the teacher's answers: kl for scores of classes, bce for events, mse for values; auto: as the "
        "network's end, the metric or labels say",
    )
    epochs: int = option(10, "passes over the samples that train")
    rate: float = option(0.0, "learning rate of Adam, relative to the root mean square of each weight")
    batch_size: int = option(32, "samples of one step")
    held_out: float = option(0.25, "share of the samples that do not train, by which the best epoch is chosen")
    seed: int = option(1, "random seed: which samples are held out, and the order of the others")
    answers: tuple[str, ...] = option(
        (), "tensors in which answers are compared; default: the outputs, before their last softmax or sigmoid"
    )
    device: TrainingDevice = option("auto", "where torch computes; auto: on a GPU if it has one")
    num_threads: int = option(0, "threads of torch; 0: torch's default")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, epochs=(0, math.inf), rate=(0, 1.0), batch_size=(1, math.inf), held_out=(0.01, 0.9))
        check_bounds(self, seed=(0, math.inf), num_threads=(0, MOST_THREADS))
        if self.loss not in LOSSES and ":" not in self.loss:
            raise ConfigError(f"loss is '{self.loss}', but must be one of {', '.join(LOSSES)} or module:function")

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions(library.DISTRIBUTION, "onnx", "onnx-ir", "onnxruntime", "numpy")

    def modules(self, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(SIMULATOR),)

    @property
    def step(self) -> float:
        """The learning rate."""
        return self.rate or (LABELS_RATE if self.needs_labels else TEACHER_RATE)

    @property
    def needs_labels(self) -> bool:
        """Whether there is nothing to train by without labels; a user's function gets them if there are any."""
        return self.loss in ("labels", "both")


@dataclass(frozen=True)
class TrainingAim:
    """What a network is trained towards, and where a user's functions lie."""

    teacher: OnnxModel
    """The trained network, whose answers are learned."""
    metric: str
    """The task's metric, by which epochs are judged where there are labels; empty: by the loss."""
    output: str
    """The output that metric and labels are for; empty: the only one."""
    folder: Path
    placement: PlacementOptions | None = None
    """Where INT8 stands; None where FP32 is trained."""
    loss: str = ""
    """As in the options, for its source where it is a user's."""

    def digest(self) -> str:
        """SHA-256 (hex) of all of it, and of the sources of a user's metric and loss.

        Raises:
            DataError: there is no such function.
        """
        sources = (source_code(function, self.folder) for function in (self.metric, self.loss))
        digests = (hashlib.sha256(source).hexdigest() for source in sources)
        parts = [self.teacher.digest(), self.metric, self.output, repr(self.placement), self.loss, *digests]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
