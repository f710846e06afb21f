"""Outputs saved in Polygraphy's format, and compared by Polygraphy; the only file that names it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.analysis.difference import Difference, Element
from calibration.analysis.sqnr import without_equal_infinities
from engines.contract import Array
from engines.left_out import left_out
from pipeline.errors import ConfigError
from pipeline.option import option

NO_ATOLS: Mapping[str, float] = {}


@dataclass(frozen=True)
class Tolerance:
    """How far an engine's outputs and metric may be from the FP32 model's.

    As in Polygraphy's elementwise check an element passes where ``|a - b| <= atol`` or ``|a - b| <= rtol * |b|``.
    """

    atol: float = option(math.inf, "largest absolute difference of an output's element")
    rtol: float = option(0.0, "largest difference relative to the FP32 element, where it is above atol")
    min_cosine: float = option(-1.0, "smallest cosine similarity of a batch of outputs")
    min_psnr_db: float = option(-math.inf, "smallest peak signal-to-noise ratio of a batch of outputs, dB")
    min_sqnr_db: float = option(-math.inf, "smallest signal to quantization noise ratio of an output, dB")
    max_metric_drop: float = option(math.inf, "largest drop of the task metric against FP32, in the metric's unit")
    derived: bool = option(True, "derive atol and min_sqnr_db, where not given, from the rounding of the format")


@dataclass(frozen=True)
class OutputComparison:
    """One output of a candidate against the reference, over all samples."""

    max_abs: float
    """Largest absolute difference."""
    mean_abs: float
    """Mean absolute difference."""
    cosine_min: float
    cosine_mean: float
    """Cosine similarity of a batch's outputs: the smallest of all batches, and the mean; see ``WEAK``."""
    psnr_db: float
    """Smallest peak signal-to-noise ratio of all batches, dB; inf where the outputs are equal."""
    sqnr_db: float
    """Power of the reference to that of the difference, over all samples, dB; inf where the outputs are equal."""
    worst: Element
    """The first that differs most, or is no number."""
    passed: bool
    failures: tuple[str, ...]
    """One sentence for each check that failed."""


def write_outputs(path: Path, runner: str, batches: Sequence[Mapping[str, Array]]) -> None:
    """Save what a runner answered, batch by batch, as Polygraphy's RunResults (JSON)."""
    with _quiet():
        from polygraphy.comparator import IterationResult, RunResults

        results = RunResults()
        results.append((runner, [IterationResult(dict(batch), runner_name=runner) for batch in batches]))
        results.save(str(path))


class SavedOutputs:
    """What ``write_outputs`` saved: read once, and kept once, the batches being parts of what they are joined to."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            ConfigError: the file is missing or is not Polygraphy's RunResults.
        """
        self.path = path
        self.runner, batches = _iterations(path)
        try:
            self.arrays = {name: joined([batch[name] for batch in batches]) for name in batches[0]}
            """All outputs by name, batches joined along the first dimension; see ``joined``."""
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"{path}: its batches do not match each other ({error}); run `trtforge infer` again"
            ) from error
        self._ends = {name: np.cumsum([len(batch[name]) for batch in batches])[:-1] for name in self.arrays}

    def batches(self) -> list[dict[str, Array]]:
        """As they were run."""
        parts = {name: np.split(array, self._ends[name]) for name, array in self.arrays.items()}
        return [dict(zip(parts, batch)) for batch in zip(*parts.values(), strict=True)]


def read_outputs(path: Path) -> dict[str, Array]:
    """All outputs by name, batches joined along the first dimension; see ``joined``.

    Raises:
        ConfigError: the file is missing or is not Polygraphy's RunResults.
    """
    return SavedOutputs(path).arrays


def compare(
    reference: SavedOutputs, candidate: SavedOutputs, tolerance: Tolerance, atols: Mapping[str, float] = NO_ATOLS
) -> dict[str, OutputComparison]:
    """Each output of the candidate against the reference's of the same name, by Polygraphy's comparators.

    Its elementwise check sorts every batch for medians that nobody reads, most of the time on a text recognizer's 68
    million scores; so ``Difference`` is that check, and cosine and peak signal-to-noise ratio are Polygraphy's own.

    Outputs are matched by name, never by order. Both must have been run on the same samples. ``atols``: by output,
    instead of the tolerance's.

    Raises:
        ConfigError: the outputs' names differ, or the numbers of samples do.
    """
    aligned = _aligned(reference, candidate)
    names = aligned.names
    with _quiet():
        from polygraphy.comparator import compare as polygraphy

        results = {
            "cosine": polygraphy.CosineSimilarityCompareFunc(cosine_similarity_threshold=tolerance.min_cosine),
            "psnr": polygraphy.PsnrCompareFunc(psnr_threshold=tolerance.min_psnr_db),
        }
        pairs = list(zip(aligned.references, aligned.candidates, strict=True))
        checks = {check: [function(have, want) for want, have in pairs] for check, function in results.items()}
        differences = {name: Difference(atols.get(name, tolerance.atol), tolerance.rtol) for name in names}
        for want, have in pairs:
            for name, difference in differences.items():
                difference.add(want[name], have[name])
    summaries = {name: _summary(name, checks, differences[name], tolerance) for name in names}
    return {name: _with_unlike(summary, aligned.unlike.get(name, "")) for name, summary in summaries.items()}


def _with_unlike(summary: OutputComparison, unlike: str) -> OutputComparison:
    return replace(summary, passed=False, failures=(unlike, *summary.failures)) if unlike else summary


def _summary(
    name: str, checks: Mapping[str, Sequence[Mapping[str, Any]]], difference: Difference, tolerance: Tolerance
) -> OutputComparison:
    """One output's comparison out of Polygraphy's results, batch by batch."""
    cosine = difference.cosines([float(batch[name].cosine_similarity) for batch in checks["cosine"]])
    psnr = [float(batch[name].psnr) for batch in checks["psnr"]]
    cosine_min, psnr_min = float(np.min(cosine)), float(np.min(psnr))
    failures = []
    if not math.isfinite(difference.max_abs):
        failures.append(f"output '{name}' has NaN or infinity")
    else:
        if not difference.is_within:
            failures.append(
                f"output '{name}' differs by up to {difference.max_abs:.4g}, but atol {difference.atol:g} and rtol "
                f"{difference.rtol:g} are allowed"
            )
        if cosine_min < tolerance.min_cosine:
            failures.append(f"output '{name}' has cosine {cosine_min:.6f}, below min_cosine {tolerance.min_cosine:g}")
        if difference.sqnr_db() < tolerance.min_sqnr_db:
            failures.append(
                f"output '{name}' has an SQNR of {difference.sqnr_db():.1f} dB, below min_sqnr_db "
                f"{tolerance.min_sqnr_db:g}"
            )
        if psnr_min < tolerance.min_psnr_db:
            failures.append(f"output '{name}' has PSNR {psnr_min:.1f} dB, below min_psnr_db {tolerance.min_psnr_db:g}")
    return OutputComparison(
        max_abs=difference.max_abs,
        mean_abs=difference.mean_abs(),
        cosine_min=cosine_min,
        cosine_mean=float(np.mean(cosine)),
        psnr_db=psnr_min,
        sqnr_db=difference.sqnr_db(),
        worst=difference.worst,
        passed=not failures,
        failures=tuple(f"{failure}; {difference.worst.words()}" for failure in failures),
    )


def _iterations(path: Path) -> tuple[str, list[dict[str, Array]]]:
    """What ran them, and the outputs of each batch."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"{path}: {what}; give a file that `trtforge infer` or `polygraphy run --save-outputs` wrote")
    with _quiet():
        from polygraphy.comparator import RunResults

        try:
            results = RunResults.load(str(path))
            runner, iterations = results[0]
            batches = [dict(iteration.items()) for iteration in iterations]
            if not all(isinstance(array, np.ndarray) for batch in batches for array in batch.values()):
                raise TypeError("an output is no array")
        except Exception as error:
            raise ConfigError(
                f"{path}: cannot be read as Polygraphy's RunResults ({type(error).__name__}); "
                "make it with `trtforge infer` or `polygraphy run --save-outputs`"
            ) from error
    if not batches or not all(batches):
        raise ConfigError(f"{path}: holds no outputs; run `trtforge infer` again")
    return str(runner), batches


@dataclass(frozen=True)
class _Aligned:
    """Both sides as Polygraphy's iterations, cut into the reference's batches."""

    names: list[str]
    references: list[Any]
    candidates: list[Any]
    unlike: dict[str, str]
    """Output -> which samples have other shapes than FP32's; they are left out."""


def _aligned(reference: SavedOutputs, candidate: SavedOutputs) -> _Aligned:
    theirs, ours = dict(reference.arrays), dict(candidate.arrays)
    if set(theirs) != set(ours):
        raise ConfigError(
            f"{candidate.path}: has the outputs {', '.join(sorted(ours))}, but {reference.path} has "
            f"{', '.join(sorted(theirs))}; compare engines of one model"
        )
    num_reference, num_candidate = (len(next(iter(arrays.values()))) for arrays in (theirs, ours))
    if num_reference != num_candidate:
        raise ConfigError(
            f"{candidate.path}: holds {num_candidate} samples, but {reference.path} {num_reference}; run both on the "
            "same data"
        )
    sizes = [len(next(iter(batch.values()))) for batch in reference.batches()]
    unlike: dict[str, str] = {}
    for name, array in ours.items():
        first, second = theirs[name], array
        if first.dtype == object or second.dtype == object or first.ndim != second.ndim:
            theirs[name], ours[name], unlike[name] = _by_sample(name, first, second)
            sizes = [1] * num_reference
        elif array.shape[1:] != first.shape[1:]:
            raise ConfigError(
                f"{candidate.path}: output '{name}' is {array.shape[1:]} a sample, but {first.shape[1:]} in "
                f"{reference.path}; compare engines of one model"
            )
    with _quiet():
        from polygraphy.comparator import IterationResult

        references, candidates, begin = [], [], 0
        for size in sizes:
            end = begin + size
            cut = {name: (_cut(array, begin, end), _cut(ours[name], begin, end)) for name, array in theirs.items()}
            finite = {name: without_equal_infinities(*pair) for name, pair in cut.items()}
            want, have = ({name: pair[side] for name, pair in finite.items()} for side in (0, 1))
            references.append(IterationResult(_numbers(want), runner_name="reference"))
            candidates.append(IterationResult(_numbers(have), runner_name="candidate"))
            begin = end
    return _Aligned(list(theirs), references, candidates, unlike)


def _by_sample(name: str, theirs: Array, ours: Array) -> tuple[Array, Array, str]:
    """Outputs that belong to their sample whatever their shape, without those whose shapes differ; which these are."""
    depth = max(_depth(theirs), _depth(ours))
    first, second = ([_value(array, row, depth) for row in range(len(array))] for array in (theirs, ours))
    differing = [row for row, (want, have) in enumerate(zip(first, second)) if want.shape != have.shape]
    for row in differing:
        first[row] = second[row] = np.zeros(1, theirs[row].dtype)
    sentence = ""
    if differing:
        want, have = _value(theirs, differing[0], depth), _value(ours, differing[0], depth)
        sentence = (
            f"output '{name}' has another shape than FP32's on {len(differing)} of {len(theirs)} samples, such as "
            f"{have.shape} instead of {want.shape} on sample {differing[0]}"
        )
    return _apart(first), _apart(second), sentence


def _depth(array: Array) -> int:
    """Dimensions of a sample's value."""
    return int(array[0].ndim) if array.dtype == object else array.ndim - 1


def _value(array: Array, row: int, depth: int) -> Array:
    """A sample's value; by itself if the other side has one dimension more, as a part of the batch."""
    value = np.asarray(array[row])
    return value if value.ndim == depth else value[np.newaxis]


def joined_samples(answers: Sequence[Array]) -> Array:
    """One output of samples that were run one by one, as one array (N, ...); see ``joined``.

    Where it is not of one row on every sample, such as a detector's boxes, all of it belongs to the sample.
    """
    is_row = all(answer.ndim and len(answer) == 1 for answer in answers)
    return joined(answers if is_row else [answer[np.newaxis] for answer in answers])


def joined(parts: Sequence[Array]) -> Array:
    """Batches as one array; an (N,) array of arrays where each is of one sample and their shapes differ.

    Raises:
        ValueError: their shapes differ, and they are of several samples.
    """
    if len({(part.ndim, part.shape[1:]) for part in parts}) == 1:
        return np.concatenate(parts)
    if any(part.ndim == 0 or len(part) != 1 for part in parts):
        raise ValueError("outputs of several samples differ in shape")
    return _apart([part[0] for part in parts])


def _cut(array: Array, begin: int, end: int) -> Array:
    """Some samples; of arrays, one sample as a batch."""
    return np.asarray(array[begin])[np.newaxis] if array.dtype == object else array[begin:end]


def _apart(values: Sequence[Array]) -> Array:
    """(N,), of arrays."""
    array = np.empty(len(values), object)
    for row, value in enumerate(values):
        array[row] = value
    return array


def _numbers(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Truth values as 0 and 1, which can be subtracted; of a sample without values a 0."""
    filled = {name: array if array.size else np.zeros((len(array), 1), array.dtype) for name, array in batch.items()}
    return {name: array.astype(np.uint8) if array.dtype == np.bool_ else array for name, array in filled.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Polygraphy's log and numpy's warnings of NaN kept off the terminal; errors still raise, and NaN still fails.

    Polygraphy imports PyTorch, which takes seconds, to ask whether an array is a tensor of it: none is.
    """
    from polygraphy.logger import G_LOGGER

    with left_out(("torch",)), np.errstate(all="ignore"), G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield
