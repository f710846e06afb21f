"""Train weights and ranges for the INT8 that is deployed: quantization-aware training by distillation."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, get_args

import onnx

from calibration.analysis.sqnr import sqnr_db_of
from calibration.data.batches import Samples
from calibration.graph.editing import named
from calibration.graph.external_data import model_from_file, save_model
from calibration.graph.tensor_digests import tensor_digests
from calibration.graph.watched_outputs import watch_tensors
from calibration.precision.place import placement_words
from calibration.precision.placement import FULL_BITS, PlacementOptions, PlacementTarget
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.ranges import RangesRecord, spans_from_ranges
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder, rewrite_ranges, write_ranges
from engines.contract import Array
from engines.errors import EngineError, Unavailable
from engines.torch_graph import library
from engines.torch_graph.network import TorchNetwork
from pipeline.artifact import OnnxModel, Ranges, Tuned, copy_files
from pipeline.errors import ConfigError
from pipeline.json_record import finite
from pipeline.option import check_bounds, option
from pipeline.training.acceptance import accepted
from pipeline.training.curve import TrainingRecord
from pipeline.training.distillation import (
    TrainingTask,
    answers_by_simulator,
    checkpoint_of,
    device_of,
    first_epoch,
    task_of,
    train_network,
    with_weights,
)
from pipeline.training.heads import tensors_of
from pipeline.training.loop import Learned, Learner, Masks, answers_of
from pipeline.training.options import RATE_OF_4_BITS, Training, TrainingAim
from pipeline.training.samples import few_note
from pipeline.training.simulation import PlacedModel, fake_quantization, placed_model, tuned_ranges

LEAST_AGREEMENT_DB = 20.0
"""Of the deployed file with what was trained: INT8 itself is 20 to 40 dB from FP32, and a value at the edge between two
codes falls on either side."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tune(Training):
    """Train weights and ranges with the rounding of INT8 in them, so that the INT8 network answers as FP32 does.

    Quantization-aware training on the exported ONNX graph itself, with the Q/DQ placement that is deployed. It needs no
    labels: the FP32 network is the teacher, on the calibration samples or those of [data.tuning]. Epoch 0 is
    post-training quantization, and what does not beat it on held-out samples is not used. The result serves INT8 on
    that backend alone.
    """

    RESULT: ClassVar[str] = "tuned"

    rate: float = option(
        0.0,
        "learning rate of Adam, relative to the rms of each weight; 0: 0.0001 for the teacher, 0.0003 of weights of 4 "
        "bits, 0.001 with labels",
    )
    learn_ranges: bool = option(True, "ranges of activations are learned too; no: they stay as calibrated")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        super().__post_init__()
        check_bounds(self, epochs=(1, math.inf))

    def placed_for(self, placement: str) -> Tune:
        """For a backend that wants its nodes so."""
        if placement not in get_args(PlacementTarget):
            raise ConfigError("the backend takes no INT8 model to tune for; take tuned out of [variants] networks")
        return self

    def _for_bits(self, weight_bits: int) -> Tune:
        """With a rate for weights of so many bits, where none is named."""
        if self.rate or self.needs_labels or weight_bits == FULL_BITS:
            return self
        return replace(self, rate=RATE_OF_4_BITS)

    def __call__(self, out: Path, model: OnnxModel, ranges: Ranges, samples: Samples, aim: TrainingAim) -> Tuned:
        """Write ``out/tuned`` (``model.onnx``, ``ranges``, ``training.json``) and ``out/notes.json``.

        Raises:
            Unavailable: torch or ONNX Runtime is not installed.
            DataError: too few samples, no labels where the loss needs them, or ranges of another model.
            ConfigError: there is nothing to compare answers in, or a user's loss raises.
            ModelError: nothing can be INT8.
            EngineError: an operator cannot be trained through; or what is deployed answers otherwise than in training.
        """
        if reason := library.why_not():
            raise Unavailable(f"tune: {reason}")
        assert aim.placement is not None
        proto = named(model_from_file(model.path))
        record = ranges_from_folder(ranges.path)
        record.check_model(model.digest(), lambda: tensor_digests(proto))
        record.check_measured("tuning")
        folder = out / "tuned"
        folder.mkdir()
        stage = self._for_bits(aim.placement.weight_bits)
        with device_of(self) as device:
            task = task_of(stage, aim, samples, device)
            tuning = _Tuning(stage, task, proto, record, aim.placement)
            checkpoint = checkpoint_of(out, self, model.digest(), ranges.digest(), samples.digest(), aim.digest())
            ptq = tuning.ptq_answers()
            learned, training = train_network(
                task, tuning.learner, first_epoch(tuning.learner, ptq), checkpoint, tuning.zeros()
            )
            if learned.best:
                training = tuning.write(learned, training, ranges, folder, ptq)
        if not training.is_used:
            save_model(model_from_file(model.path), folder / "model.onnx")
            copy_files(ranges.path, folder / "ranges")
            origin = replace(record.origin, model_digest=OnnxModel(folder / "model.onnx").digest())
            rewrite_ranges(replace(record, origin=origin), folder / "ranges")
        training.write(folder)
        notes = [training.sentence("tune"), *few_note(task.samples)]
        (out / "notes.json").write_text(json.dumps(notes))
        return Tuned(folder)


class _Tuning:
    """One tuning at work."""

    def __init__(
        self, stage: Tune, task: TrainingTask, model: onnx.ModelProto, record: RangesRecord, options: PlacementOptions
    ) -> None:
        self._task, self._model, self._record, self._options = task, model, record, options
        self._spans = spans_from_ranges(record.read_for(options.target))
        self._placed: PlacedModel = placed_model(model, self._spans, options)
        fixed = {name for name, tensor in record.tensors.items() if tensor.bounds}
        self._rounding = fake_quantization(self._placed.placement, self._spans, fixed, stage.learn_ranges)
        self.learner: Learner = task.learner(TorchNetwork(self._placed.model), self._rounding)

    def ptq_answers(self) -> dict[str, Array]:
        """What post-training quantization answers on the held-out samples, as it would be deployed."""
        return self._deployed_answers(self._model, self._record, self._options)

    def _deployed_answers(
        self, model: onnx.ModelProto, record: RangesRecord, options: PlacementOptions
    ) -> dict[str, Array]:
        spans, wanted = spans_from_ranges(record.read_for(options.target)), self.learner.wanted()
        quantized = qdq_from_onnx(model, spans, options).model
        samples = self._task.samples
        return answers_by_simulator(watch_tensors(quantized, wanted), samples, wanted, samples.held_out)

    def zeros(self) -> Masks:
        """Weights that are 0 stay 0, as pruning made them."""
        torch = library.load_torch()
        with torch.no_grad():
            masks = {name: (each != 0).float() for name, each in self.learner.network.parameters.items()}
        partly = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        return Masks(lambda _epoch: partly)

    def write(
        self, learned: Learned, training: TrainingRecord, ranges: Ranges, folder: Path, ptq: Mapping[str, Array]
    ) -> TrainingRecord:
        """Write what was learned, if its INT8 file is better than ``ptq``; the record with what that answers.

        Raises:
            EngineError: it answers otherwise than in training.
        """
        tuned = with_weights(self._placed.model, learned.weights)
        save_model(tuned, folder / "model.onnx")
        histograms = histograms_from_folder(ranges.path)
        origin = replace(
            self._record.origin,
            model_digest=OnnxModel(folder / "model.onnx").digest(),
            tensor_digests=tensor_digests(tuned),
            source=placement_words(self._options),
        )
        record = tuned_ranges(self._record, histograms, self._placed.placement, learned.scales, origin)
        deployed = self._deployed_answers(tuned, record, replace(self._options, nearest=True))
        agreement = self._agreement_db(learned, deployed)
        acceptance = accepted(self.learner, ptq, deployed, learned, self._task.options.seed)
        log.info("deployed: %s, %.1f dB from what was trained", acceptance.words(), agreement)
        if agreement < LEAST_AGREEMENT_DB:
            raise EngineError(
                f"{self._model.graph.name}: the INT8 file is {agreement:.0f} dB from what was trained, at least "
                f"{LEAST_AGREEMENT_DB:.0f} dB are expected; leave [tune] out, and report it"
            )
        if acceptance.is_better:
            (folder / "ranges").mkdir()
            write_ranges(record, histograms, folder / "ranges")
        return training.decided(acceptance.is_better, acceptance.words(), finite(agreement))

    def _agreement_db(self, learned: Learned, deployed: Mapping[str, Array]) -> float:
        """The least of all answers."""
        network, samples = self.learner.network, self._task.samples
        torch = library.load_torch()
        with torch.no_grad():
            for name, tensor in network.parameters.items():
                tensor.copy_(torch.tensor(learned.weights[name]))
            self._rounding.take(learned.scales)
        wanted = tensors_of(self._task.heads)
        ours = answers_of(network, samples, wanted, samples.held_out, self._rounding)
        return min(sqnr_db_of(ours[name], deployed[name][: len(ours[name])]) for name in wanted)
