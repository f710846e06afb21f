"""The samples that a network is trained on: all of them in memory, some of them held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.data.batches import Samples
from calibration.errors import DataError
from engines.contract import Array
from pipeline.engine_runner import as_model_takes, model_ranks
from pipeline.training.options import Training

LEAST_SAMPLES = 8
FEW_SAMPLES = 128
"""Fewer samples decide little: a share of them is held out."""
SampleIndices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainingSamples:
    """Arrays by input, (N, …), with labels where there are some; and which samples train."""

    arrays: Mapping[str, Array]
    labels: Array | None
    train: SampleIndices
    held_out: SampleIndices
    fixed_batch: int
    """The batch that the model takes alone; 0 if it takes any."""
    ranks: Mapping[str, int]
    """Each input's number of axes in the model."""

    def rows(self, indices: SampleIndices) -> dict[str, Array]:
        """These samples as one batch, as the model takes them."""
        return as_model_takes({name: array[indices] for name, array in self.arrays.items()}, self.ranks)

    def labels_of(self, indices: SampleIndices) -> Array | None:
        """The labels of these samples."""
        return None if self.labels is None else self.labels[indices]

    def step_size(self, asked: int) -> int:
        """The samples of one step where ``asked`` are wanted: whole batches of what the model takes, one at least."""
        fixed = self.fixed_batch or 1
        return max(asked // fixed, 1) * fixed

    def pieces(self, indices: SampleIndices, size: int) -> Iterator[SampleIndices]:
        """Pieces of at most ``size``; where the model's batch is fixed, whole ones of that."""
        step = self.fixed_batch or size
        for begin in range(0, len(indices), step):
            piece = indices[begin : begin + step]
            if len(piece) == step or not self.fixed_batch:
                yield piece


def training_samples(samples: Samples, options: Training, num_classes: int = 0) -> TrainingSamples:
    """Read all samples, and hold some out.

    Raises:
        DataError: too few; no labels where the loss needs them, or text; or all of one class.
    """
    fixed = samples.fixed_batch or 1
    num = samples.num_samples // fixed * fixed  # Only whole batches can be run.
    num_held = max(round(num * options.held_out / fixed), 1) * fixed
    if num < LEAST_SAMPLES or num - num_held < fixed:
        raise DataError(
            f"{samples.source.path}: has {samples.num_samples} samples, of which {num_held} would be held out; at "
            f"least {max(LEAST_SAMPLES, 2 * fixed)} are needed to train, and {FEW_SAMPLES} to decide anything; "
            "give more, as calibration data or in [data.tuning]"
        )
    labels = labels_for(samples, options)
    pieces = list(samples.pieces(256))
    shapes = {piece[name].shape[1:] for piece in pieces for name in piece}
    if len(shapes) > len(samples.specs):
        raise DataError(
            f"{samples.source.path}: has samples of several shapes, a batch that trains has one; set resize and crop "
            "in preprocess"
        )
    arrays = {spec.name: np.concatenate([piece[spec.name] for piece in pieces])[:num] for spec in samples.specs}
    order = np.random.default_rng(options.seed).permutation(num)
    return TrainingSamples(
        arrays,
        labels,
        np.sort(order[num_held:]),
        np.sort(order[:num_held]),
        samples.fixed_batch,
        model_ranks(samples),
    )


def labels_for(samples: Samples, options: Training) -> Array | None:
    """The labels, where there are some that the loss can use.

    Raises:
        DataError: the loss needs labels, and there are none, or they are text, or all of one class.
    """
    if not options.needs_labels and ":" not in options.loss:
        return None
    if samples.reader.labels() is None and not options.needs_labels:
        return None
    labels = samples.labels()
    if labels.dtype.kind == "U" and options.needs_labels:
        raise DataError(
            f"{samples.source.path}: labels are text, which loss '{options.loss}' cannot compare; give a loss of your "
            "own as module:function, or take teacher"
        )
    if options.needs_labels and labels.ndim == 1 and labels.dtype.kind == "i" and len(np.unique(labels)) == 1:
        raise DataError(
            f"{samples.source.path}: all {len(labels)} samples are of class {labels[0]}, from which nothing can be "
            "learned; give samples of every class"
        )
    return labels


def labels_beside(samples: Samples) -> Array | None:
    """The labels that came with the samples, whether or not they train; None where there are none, or they are text."""
    if samples.reader.labels() is None:
        return None
    labels = samples.labels()
    return None if labels.dtype.kind == "U" else labels


def few_note(samples: TrainingSamples) -> list[str]:
    """A sentence, where few samples decide."""
    num, num_held = len(samples.train) + len(samples.held_out), len(samples.held_out)
    if num >= FEW_SAMPLES:
        return []
    return [
        f"{num} samples, of which {num_held} decide which epoch is best: at least {FEW_SAMPLES} are expected; give more"
    ]


def label_tensor(torch: Any, samples: TrainingSamples, indices: SampleIndices) -> Any:
    """The labels of these samples where the default device is; None where there are none, or they are text."""
    labels = samples.labels_of(indices)
    return None if labels is None or labels.dtype.kind == "U" else torch.tensor(labels)


def tensors(torch: Any, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Arrays as torch's, where the default device is."""
    return {name: torch.tensor(array) for name, array in arrays.items()}
