"""A network is trained, with INT8 in it or without: made ready, trained, and held to what is deployed."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from calibration.analysis.sqnr import sqnr_db_of
from calibration.data.batches import Samples
from calibration.graph.editing import named
from calibration.graph.external_data import model_from_file, save_model
from calibration.graph.watched_outputs import watch_tensors
from engines.contract import Array
from engines.errors import EngineError
from engines.torch_graph.library import load_torch
from engines.torch_graph.network import TorchNetwork
from engines.torch_graph.rounding import FakeQuantization
from pipeline.accuracy.metrics import Metric, metric
from pipeline.engine_runner import SampleRunner, load_simulation
from pipeline.json_record import finite
from pipeline.source_digest import source_digest
from pipeline.training.checkpoint import EpochCheckpoint
from pipeline.training.curve import Epoch, TrainingRecord
from pipeline.training.heads import Head, heads_of, judged_heads, tensors_of
from pipeline.training.loop import Learned, Learner, Masks, answers_of, device_of, judged, trained
from pipeline.training.losses import Compared, loss_of, loss_words
from pipeline.training.options import Training, TrainingAim
from pipeline.training.samples import SampleIndices, TrainingSamples, labels_beside, training_samples

LEAST_AGREEMENT_DB = 60.0
"""Of FP32 in torch with FP32 in ONNX Runtime, which differ by the order of their sums: 100 dB and more are usual."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingTask:
    """One training, but for what INT8 adds."""

    options: Training
    aim: TrainingAim
    samples: TrainingSamples
    heads: Sequence[Head]
    teacher: Mapping[str, Array]
    device: str

    @property
    def compared(self) -> Compared:
        """What answers are compared with."""
        return Compared(self.heads, self.teacher, self.samples.labels)

    @property
    def metric(self) -> Metric | None:
        """What judges epochs, where there are labels."""
        if not self.aim.metric or not self.options.needs_labels:
            return None
        return metric(self.aim.metric, self.aim.output, self.aim.folder)

    def learner(self, network: TorchNetwork, rounding: FakeQuantization | None) -> Learner:
        """The network with all that it is judged by."""
        loss = loss_of(load_torch(), self.options, self.aim, self.compared)
        return Learner(network, rounding, self.heads, loss, self.metric, self.samples, self.teacher)


def task_of(options: Training, aim: TrainingAim, samples: Samples, device: str) -> TrainingTask:
    """Read the samples, and what the trained network answers on them; its FP32 in torch is held to ONNX Runtime's.

    Raises:
        DataError: samples or labels that do not do.
        ConfigError: there is nothing to compare answers in.
        EngineError: torch cannot compute the network, or computes something else.
    """
    model = named(model_from_file(aim.teacher.path))
    heads = heads_of(model, options.answers)
    wanted = tensors_of(heads)
    training = training_samples(samples, options)
    everything = np.arange(len(training.train) + len(training.held_out))
    network = TorchNetwork(model)
    check_fp32(network, model, training, wanted)
    answers = answers_of(network, training, wanted, everything)
    heads = judged_heads(heads, options, aim, labels_beside(samples), answers)
    return TrainingTask(options, aim, training, heads, answers, device)


def check_fp32(network: TorchNetwork, model: onnx.ModelProto, samples: TrainingSamples, wanted: Sequence[str]) -> None:
    """That torch computes what ONNX Runtime does.

    Raises:
        EngineError: it does not; the sentence names the tensor and how far apart they are.
    """
    few = next(samples.pieces(samples.held_out, 8))
    ours = answers_of(network, samples, wanted, few)
    theirs = answers_by_simulator(watch_tensors(model, wanted), samples, wanted, few)
    for name in wanted:
        if (ratio := sqnr_db_of(theirs[name], ours[name])) < LEAST_AGREEMENT_DB:
            raise EngineError(
                f"'{name}': FP32 in torch is {ratio:.0f} dB from FP32 in ONNX Runtime, {LEAST_AGREEMENT_DB:.0f} dB are "
                "expected; leave [tune] and [prune] out, and report it"
            )


def answers_by_simulator(
    model: onnx.ModelProto, samples: TrainingSamples, wanted: Sequence[str], indices: SampleIndices
) -> dict[str, Array]:
    """Tensors of a model on these samples as ONNX Runtime computes it, every node as it stands."""
    with tempfile.TemporaryDirectory(prefix="trtforge-") as folder, ExitStack() as stack:
        save_model(model, Path(folder) / "model.onnx")
        run = SampleRunner(stack.enter_context(load_simulation(Path(folder) / "model.onnx")))
        parts = [run(samples.rows(piece)) for piece in samples.pieces(indices, 64)]
    return {name: np.concatenate([part[name] for part in parts]) for name in wanted}


def train_network(
    task: TrainingTask, learner: Learner, first: Epoch, checkpoint: EpochCheckpoint, masks: Masks | None = None
) -> tuple[Learned, TrainingRecord]:
    """Train from ``first``, which is epoch 0 and must be beaten; and the record, as far as it is known."""
    learned = trained(learner, task.options, first, checkpoint, masks)
    record = TrainingRecord(
        loss=task.options.loss,
        metric="" if learner.metric is None else learner.metric.name,
        num_train=len(task.samples.train),
        num_held_out=len(task.samples.held_out),
        epochs=tuple(learned.curve),
        best=learned.best,
        is_used=bool(learned.best),
        decision="",
        agreement_db=None,
        stopped=learned.stopped,
        device=task.device,
        compared=loss_words(task.options, task.aim, task.compared),
    )
    return learned, record


def first_epoch(learner: Learner, answers: Mapping[str, Array]) -> Epoch:
    """Epoch 0: what stands there without any training, as it answers on the held-out samples."""
    loss, value = judged(learner, answers)
    return Epoch(0, None, finite(loss), finite(value))


def with_weights(model: onnx.ModelProto, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """The model with these initializers in the place of those of the same names."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(weights[tensor.name], np.float32), tensor.name))
    return result


def checkpoint_of(out: Path, stage: Training, *inputs: object) -> EpochCheckpoint:
    """Where an interrupted training of this kind goes on."""
    source = source_digest(type(stage).__module__, *stage.modules())
    key = hashlib.sha256(repr((stage, inputs, stage.versions(), source)).encode()).hexdigest()[:32]
    return EpochCheckpoint(out.parent, key)


__all__ = [
    "TrainingTask", "answers_by_simulator", "check_fp32", "checkpoint_of", "device_of", "first_epoch", "task_of",
    "train_network", "with_weights",
]  # fmt: skip
