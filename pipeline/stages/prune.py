"""Set a share of the weights to zero, at once or step by step while the network is trained to answer as before."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from calibration.arrays import AnyArray, Floats
from calibration.data.batches import Samples
from calibration.errors import ModelError
from calibration.graph.editing import named
from calibration.graph.external_data import array_of, model_from_file, save_model
from calibration.graph.patterns import nodes_by_name, nodes_meant
from calibration.graph.watched_outputs import watchable, write_watched
from calibration.ranges.means import channel_rms
from calibration.weights.masks import Pattern, Prunable, PrunableWeights, mask_of, prunable_weights
from engines.torch_graph import library
from engines.torch_graph.network import TorchNetwork
from pipeline.artifact import OnnxModel
from pipeline.engine_runner import SIMULATOR, Sessions, few
from pipeline.errors import ConfigError, Unavailable
from pipeline.machine.progress import waiting
from pipeline.option import check_bounds, option
from pipeline.training.acceptance import accepted
from pipeline.training.distillation import (
    checkpoint_of,
    device_of,
    first_epoch,
    task_of,
    train_network,
    with_weights,
)
from pipeline.training.loop import Masks, answers_of
from pipeline.training.options import Training, TrainingAim
from pipeline.training.samples import few_note

RMS_SAMPLES = 64
"""Samples on which the inputs of products are measured, at most."""
RAMP = 0.5
"""Share of the epochs in which zeros come."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prune(Training):
    """Set a share of each output channel's weights to zero: those with the least |weight| times rms of their input.

    At once; or with epochs, by and by while the network is trained to answer as before, as `trtforge tune` does: the
    zeros come along a cubic curve (Zhu and Gupta, "To prune, or not to prune", 2017). The file has the same size, and
    the same latency on a CPU, but compresses better. Depthwise convolutions stay dense.
    """

    RESULT: ClassVar[str] = "pruned"

    share: float = option(0.5, "share of each output channel's weights that becomes zero")
    pattern: Pattern = option("any", "which zeros; 2:4: two in each four input channels, for sparse tensor cores")
    exclude: tuple[str, ...] = option((), "names, operator types or patterns (head/*) of nodes that stay dense")
    epochs: int = option(0, "passes over the samples in which it is trained meanwhile; 0: at once, without training")
    rate: float = option(0.003, "learning rate of Adam, relative to the root mean square of each weight")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        super().__post_init__()
        check_bounds(self, share=(0.01, 0.99))
        if self.pattern == "2:4" and self.share != type(self).share:
            raise ConfigError(f"share is {self.share:g}, but the pattern 2:4 has a share of 0.5; leave share out")

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        known = super().versions()
        return known if self.epochs else {name: text for name, text in known.items() if name != library.DISTRIBUTION}

    def __call__(self, out: Path, model: OnnxModel, samples: Samples, aim: TrainingAim) -> OnnxModel:
        """Write ``out/model.onnx``, ``out/notes.json`` and, where it was trained, ``out/training.json``.

        Args:
            out: a folder to write to.
            model: FP32.
            samples: on which inputs are measured, and which train where it is trained.
            aim: what is learned, where it is trained.

        Raises:
            Unavailable: it is to be trained, and torch is not installed.
            DataError: a pattern matches no node, or samples do not do.
            ModelError: nothing can be pruned.
            EngineError: the model cannot be run, or not be trained.
        """
        if self.epochs and (reason := library.why_not()):
            raise Unavailable(f"prune: {reason}; or prune at once, with epochs = 0")
        proto = named(model_from_file(model.path))
        weights = prunable_weights(proto, nodes_meant(nodes_by_name(proto), self.exclude, "exclude"), self.pattern)
        if not weights.weights:
            reasons = "".join(f"; {note}" for note in weights.notes[:3])
            raise ModelError(
                f"{proto.graph.name}: nothing can be pruned: it has no convolution or matrix product with a constant "
                f"weight that is not depthwise{reasons}; leave [prune] out"
            )
        pruner = _Pruner(self, weights, self._rms(out, model, proto, weights, samples))
        at_once = pruner.pruned(proto, self.share)
        notes = [*weights.notes, pruner.sentence(at_once)]
        if self.epochs:
            at_once, more = self._trained(out, (model, proto, at_once), samples, aim, pruner)
            notes += more
        save_model(at_once, out / "model.onnx")
        (out / "notes.json").write_text(json.dumps(notes))
        return OnnxModel(out / "model.onnx")

    def _rms(
        self, out: Path, model: OnnxModel, proto: onnx.ModelProto, weights: PrunableWeights, samples: Samples
    ) -> dict[str, Floats]:
        """The root mean square of each input channel of the products, on a few samples."""
        possible = set(watchable(proto))
        axes = {each.data: each.data_axis for each in weights.weights.values() if each.data in possible}
        watched = out / "watched.onnx"
        write_watched(model.path, proto, axes, watched)
        with waiting("inputs of products"), ExitStack() as stack:
            run = Sessions(stack, SIMULATOR, self.num_threads).of_file(watched)
            rms = channel_rms(run, few(samples, min(RMS_SAMPLES, samples.num_samples)), axes)
        watched.unlink()
        return {name: np.asarray(values) for name, values in rms.items()}

    def _trained(
        self,
        out: Path,
        models: tuple[OnnxModel, onnx.ModelProto, onnx.ModelProto],
        samples: Samples,
        aim: TrainingAim,
        pruner: _Pruner,
    ) -> tuple[onnx.ModelProto, list[str]]:
        """The network, pruned while it was trained, or at once if that is better; and sentences."""
        model, dense, at_once = models
        with device_of(self) as device:
            task = task_of(self, aim, samples, device)
            learner = task.learner(TorchNetwork(dense), None)
            untrained = answers_of(TorchNetwork(at_once), task.samples, learner.wanted(), task.samples.held_out)
            checkpoint = checkpoint_of(out, self, aim.digest(), samples.digest(), model.digest())
            masks = Masks(pruner.masks(learner.network), first_whole=_last_of_ramp(self.epochs))
            learned, record = train_network(task, learner, first_epoch(learner, untrained), checkpoint, masks)
            trained = with_weights(dense, learned.weights)
            if learned.best:
                wanted, held_out = learner.wanted(), task.samples.held_out
                after = answers_of(TorchNetwork(trained), task.samples, wanted, held_out)
                acceptance = accepted(learner, untrained, after, self.seed)
                record = record.decided(acceptance.is_better, acceptance.words())
        record.write(out)
        return trained if record.is_used else at_once, [record.sentence("prune"), *few_note(task.samples)]


def _last_of_ramp(epochs: int) -> int:
    """The first epoch that has all zeros."""
    return max(1, math.ceil(epochs * RAMP))


class _Pruner:
    """Knows which weights become zero."""

    def __init__(self, stage: Prune, weights: PrunableWeights, rms: Mapping[str, Floats]) -> None:
        self._stage, self._weights, self._rms = stage, weights, rms

    def mask(self, array: AnyArray, how: Prunable, share: float) -> Any:
        """Of one weight."""
        return mask_of(array, how, self._rms.get(how.data), share, self._stage.pattern)

    def pruned(self, model: onnx.ModelProto, share: float) -> onnx.ModelProto:
        """The model with those weights at zero."""
        arrays = {
            tensor.name: array_of(tensor) for tensor in model.graph.initializer if tensor.name in self._weights.weights
        }
        masks = {name: self.mask(array, self._weights.weights[name], share) for name, array in arrays.items()}
        return with_weights(model, {name: array * masks[name] for name, array in arrays.items()})

    def masks(self, network: TorchNetwork) -> Any:
        """Epoch -> the masks of that epoch, by the weights as they are; they stay as they are after the ramp."""
        torch = library.load_torch()
        last = _last_of_ramp(self._stage.epochs)
        final: dict[str, Any] = {}

        def masks(epoch: int) -> Mapping[str, Any]:
            if epoch > last and final:
                return final
            share = self._stage.share * (1 - (1 - min(1.0, epoch / last)) ** 3)
            arrays = network.arrays()
            made = {
                name: torch.tensor(self._of_epoch(arrays[name], how, share, epoch >= last), dtype=torch.float32)
                for name, how in self._weights.weights.items()
                if name in arrays
            }
            if epoch >= last:
                final.update(made)
            return made

        return masks

    def _of_epoch(self, array: AnyArray, how: Prunable, share: float, is_whole: bool) -> Any:
        """A mask on the way: the pattern 2:4 comes at the end of the ramp, before it any zeros do."""
        pattern = self._stage.pattern if is_whole else "any"
        return mask_of(array, how, self._rms.get(how.data), share, pattern)

    def sentence(self, model: onnx.ModelProto) -> str:
        """How many zeros there are."""
        sizes = [
            (np.count_nonzero(array == 0), array.size)
            for tensor in model.graph.initializer
            if tensor.name in self._weights.weights
            for array in [array_of(tensor)]
        ]
        floats = sum(
            math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
        )
        num_zeros = sum(zeros for zeros, _ in sizes)
        return (
            f"prune: {num_zeros:,} of {floats:,} weights are zero ({num_zeros / floats:.0%}), in {len(sizes)} "
            "convolutions and matrix products; the size of the file and the latency on a CPU stay as they were, "
            "compressed it is smaller"
        )
