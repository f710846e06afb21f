"""Set a share of the weights to zero, at once or step by step while the network is trained to answer as before."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import onnx

from calibration.data.batches import Samples
from calibration.errors import ModelError
from calibration.graph.editing import closed, opened
from calibration.graph.external_data import model_from_file, save_model
from calibration.graph.patterns import nodes_by_name, nodes_meant
from calibration.weights.masks import Pattern, PrunableWeights, prunable_weights
from engines.torch_graph import library
from engines.torch_graph.network import TorchNetwork
from pipeline.artifact import OnnxModel
from pipeline.errors import ConfigError, Unavailable
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
from pipeline.training.loop import answers_of
from pipeline.training.options import Training, TrainingAim
from pipeline.training.pruning import Pruner, Surgeon, Wanda, Zeros, zeros_sentence
from pipeline.training.reconstruction import feeds_of
from pipeline.training.samples import few_note

PruningMethod = Literal["obs", "wanda"]
OBS_RATE, WANDA_RATE = 0.001, 0.003
"""Where none is named: of a network that answers nearly as before, and of one that zeros have broken."""


@dataclass(frozen=True)
class Prune(Training):
    """Set a share of each output channel's weights to zero: those that the others can best make good for.

    Layer by layer, and on samples without labels: the weights that stay move so that sums come nearest to those of the
    network as it was (Optimal Brain Surgeon). With epochs the network is then trained to answer as before, as `trtforge
    tune` does. The file has the same size, and the same latency on a CPU, but compresses better. Depthwise convolutions
    stay dense.
    """

    RESULT: ClassVar[str] = "pruned"

    share: float = option(0.5, "share of each output channel's weights that becomes zero")
    pattern: Pattern = option("any", "which zeros; 2:4: two in each four input channels, for sparse tensor cores")
    method: PruningMethod = option(
        "obs",
        "obs: Optimal Brain Surgeon, the weights that stay make good for zeros; wanda: the least |weight| times rms of "
        "its input, and nothing else changes",
    )
    exclude: tuple[str, ...] = option((), "names, operator types or patterns (head/*) of nodes that stay dense")
    epochs: int = option(
        0, "passes over the samples in which it is trained, with wanda while the zeros come; 0: it is not trained"
    )
    rate: float = option(
        0.0,
        "learning rate of Adam, relative to the root mean square of each weight; 0: 0.001, and 0.003 with wanda",
    )

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
        proto = closed(opened(model_from_file(model.path)))
        weights = prunable_weights(proto, nodes_meant(nodes_by_name(proto), self.exclude, "exclude"), self.pattern)
        if not weights.weights:
            reasons = "".join(f"; {note}" for note in weights.notes[:3])
            raise ModelError(
                f"{proto.graph.name}: nothing can be pruned: it has no convolution or matrix product with a constant "
                f"weight that is not depthwise{reasons}; leave [prune] out"
            )
        pruner = self._pruner(proto, weights)
        made = pruner.pruned(feeds_of(samples))
        notes = [*weights.notes, zeros_sentence(made, weights), *pruner.notes]
        if self.epochs:
            made, more = self._trained(out, (model, made), samples, aim, pruner)
            notes += more
        save_model(made, out / "model.onnx")
        (out / "notes.json").write_text(json.dumps(notes))
        return OnnxModel(out / "model.onnx")

    def _pruner(self, proto: onnx.ModelProto, weights: PrunableWeights) -> Pruner:
        zeros = Zeros(self.share, self.pattern, self.num_threads)
        return Wanda(proto, weights, zeros) if self.method == "wanda" else Surgeon(proto, weights, zeros)

    @property
    def step(self) -> float:
        """The learning rate."""
        return self.rate or (WANDA_RATE if self.method == "wanda" else OBS_RATE)

    def _trained(
        self,
        out: Path,
        models: tuple[OnnxModel, onnx.ModelProto],
        samples: Samples,
        aim: TrainingAim,
        pruner: Pruner,
    ) -> tuple[onnx.ModelProto, list[str]]:
        """The network, trained with zeros in it, or ``models``' second where that is no better; and sentences.

        What held-out samples judge has seen none of them; what was pruned at once has seen all.
        """
        model, at_once = models
        with device_of(self) as device:
            task = task_of(self, aim, samples, device)
            seen = [int(index) for index in task.samples.train]
            blind = pruner.pruned(feeds_of(samples, seen))
            begun = pruner.beginning(blind)
            learner = task.learner(TorchNetwork(begun), None)
            masks = pruner.masks(learner.network, self.epochs)
            untrained = answers_of(TorchNetwork(blind), task.samples, learner.wanted(), task.samples.held_out)
            checkpoint = checkpoint_of(out, self, aim.digest(), samples.digest(), model.digest())
            learned, record = train_network(task, learner, first_epoch(learner, untrained), checkpoint, masks)
            trained = with_weights(begun, learned.weights)
            if learned.best:
                wanted, held_out = learner.wanted(), task.samples.held_out
                after = answers_of(TorchNetwork(trained), task.samples, wanted, held_out)
                acceptance = accepted(learner, untrained, after, learned, self.seed)
                record = record.decided(acceptance.is_better, acceptance.words())
        record.write(out)
        return trained if record.is_used else at_once, [record.sentence("prune"), *few_note(task.samples)]
