"""One streaming pass over a data set: a hash of each sample, constant samples, the spread of values, a few samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from calibration.arrays import AnyArray
from calibration.data.batches import Samples
from calibration.data.content_order import meet_digests
from calibration.data.source import hash_array, spread

Labels: TypeAlias = npt.NDArray[np.int64]

NUM_AT_A_TIME = 32
"""Samples that are preprocessed at once, and that are kept to look at their values."""
PROBE_BYTES = 1 << 26
LEAST_PROBE = 8
"""The samples that are kept take 64 MiB, or so many at least are kept."""
MOST_CLASSES = 1 << 20
"""Larger whole numbers are no class indices."""
LARGEST_SAFE = 1e15
"""The squares of a sample's values up to here can be summed in float32."""


@dataclass(frozen=True, eq=False)
class InputSurvey:
    """The values of one input of floating-point numbers or of bytes (uint8), over all samples."""

    min: float
    max: float
    mean_square: float
    """Mean over the samples of each one's mean of x^2."""
    negative_share: float
    probe: tuple[AnyArray, ...]
    """Samples without the batch axis, see ``Survey.probed``."""

    @property
    def amax(self) -> float:
        """The largest |x|."""
        return max(abs(self.min), abs(self.max))

    @property
    def rms(self) -> float:
        """Root of the mean square."""
        return math.sqrt(self.mean_square)


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass tells of a data set."""

    where: str
    """The data's path, for messages."""
    preprocess: str
    """The sentence of ``Preprocess.describe()``."""
    hashes: tuple[bytes, ...]
    """Of each sample, over all its inputs."""
    constant: tuple[int, ...]
    """The samples in which no value of such an input differs from its others."""
    inputs: Mapping[str, InputSurvey]
    """By name; other whole numbers than bytes are left out, as they name things."""
    num_inputs: int
    """All inputs of the model."""
    probed: tuple[int, ...]
    """The evenly spaced samples that are kept."""
    labels: Labels | None
    """(num_samples,) class indices; None where there are no such labels."""
    classes: tuple[str, ...]
    """Their names, where the source knows them."""

    @property
    def num_samples(self) -> int:
        """All samples."""
        return len(self.hashes)

    @property
    def num_distinct(self) -> int:
        """Samples without the exact copies of others."""
        return len(set(self.hashes))

    def name_of(self, label: int) -> str:
        """How a message calls a class."""
        return f"'{self.classes[label]}'" if 0 <= label < len(self.classes) else str(label)


class _Tally:
    """The sums of one input, as samples come."""

    def __init__(self) -> None:
        self.min, self.max = math.inf, -math.inf
        self.mean_squares = 0.0
        self.num_negative = self.num_values = self.num_samples = 0
        self.probe: list[AnyArray] = []

    def add(self, sample: AnyArray, is_probed: bool) -> bool:
        """Count a sample; whether it is constant."""
        flat: npt.NDArray[Any] = np.ravel(sample)
        if not flat.size:
            return True
        low, high = float(flat.min()), float(flat.max())
        self.min, self.max = min(self.min, low), max(self.max, high)
        if flat.dtype.itemsize < 4 or max(abs(low), abs(high)) > LARGEST_SAFE:
            flat = flat.astype(np.float64)
        self.mean_squares += float(np.dot(flat, flat)) / flat.size
        self.num_negative += int(np.count_nonzero(flat < 0)) if low < 0 else 0
        self.num_values += flat.size
        self.num_samples += 1
        if is_probed:
            self.probe.append(np.array(sample))
        return low == high

    def survey(self) -> InputSurvey:
        num = max(self.num_samples, 1)
        share = self.num_negative / max(self.num_values, 1)
        low, high = (self.min, self.max) if self.num_samples else (0.0, 0.0)
        return InputSurvey(low, high, self.mean_squares / num, share, tuple(self.probe))


def survey(samples: Samples, num_labelled: int = 0, on_sample: Callable[[int], object] = lambda _num: None) -> Survey:
    """Read, preprocess and check every sample once. Memory: 32 samples, a hash of each, and those that are kept.

    Args:
        samples: an opened data set.
        num_labelled: where there are class labels, how many evenly spaced samples are kept at most, else 32; fewer
            where they are large.
        on_sample: is told how many samples are read.

    Raises:
        DataError: what ``Samples.batches`` refuses, such as NaN.
    """
    floats = [spec.name for spec in samples.specs if spec.dtype.startswith("float") or spec.dtype == "uint8"]
    tallies = {name: _Tally() for name in floats}
    labels = class_labels(samples)
    num_probed = max(NUM_AT_A_TIME, 0 if labels is None else num_labelled)
    hashes: list[bytes] = []
    constant: list[int] = []
    probed: Sequence[int] = ()
    wanted: frozenset[int] = frozenset()
    for piece in samples.pieces(NUM_AT_A_TIME):
        for row in range(len(next(iter(piece.values())))):
            index = len(hashes)
            sample = {name: array[row] for name, array in piece.items()}
            if not index:
                probed = spread(samples.num_samples, _num_kept(sample, num_probed))
                wanted = frozenset(probed)
            hashes.append(_hash(sample))
            same = {name: tallies[name].add(sample[name], index in wanted) for name in floats}
            pictures = [name for name in floats if sample[name].size > 1]
            if pictures and all(same[name] for name in pictures):
                constant.append(index)
        on_sample(len(hashes))
    meet_digests(samples, hashes)
    return Survey(
        where=samples.source.path,
        preprocess=samples.preprocess.describe(),
        hashes=tuple(hashes),
        constant=tuple(constant),
        inputs={name: tally.survey() for name, tally in tallies.items()},
        num_inputs=len(samples.specs),
        probed=tuple(probed),
        labels=labels,
        classes=samples.reader.classes(),
    )


def class_labels(samples: Samples) -> Labels | None:
    """(num_samples,) class indices; None where there are no labels, or labels of another kind."""
    if samples.reader.labels() is None:
        return None
    labels = samples.labels()
    if labels.ndim != 1 or labels.dtype.kind != "i":
        return None
    indices = labels.astype(np.int64)
    return indices if indices.min() >= 0 and indices.max() < MOST_CLASSES else None


def _num_kept(sample: Mapping[str, AnyArray], num_probed: int) -> int:
    """How many samples of this size are kept; at least one, as ``spread`` takes 0 for all."""
    num_bytes = max(sum(array.nbytes for array in sample.values()), 1)
    return max(1, min(num_probed, max(LEAST_PROBE, PROBE_BYTES // num_bytes)))


def _hash(sample: Mapping[str, AnyArray]) -> bytes:
    """SHA-256 over all inputs of a sample."""
    digest = hashlib.sha256()
    for name in sorted(sample):
        hash_array(sample[name], digest)
    return digest.digest()
