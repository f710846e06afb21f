"""Lint of calibration data: does it look like what the model was trained on, and is it representative?

Each finding has its evidence, and where there can be none nothing is said:

- ``range``: the graph itself rescales its input (``calibration.lint.input_scale``), the evaluation data has another
  scale, or labels show that another scale is clearly better (``calibration.lint.label_check``).
- ``layout``: neighbouring pixels are less alike than in the other layout of the same bytes, or labels show it.
- ``channels``: labels show that reversed channels are clearly better.
- ``labels``: what labels tell where they show nothing of the kind, as a note.
- ``constant``, ``duplicates``, ``few``: each sample's values and hash.
- ``classes``, ``imbalance``: labels, beside the evaluation data's.
- ``overlap``: samples that are evaluation samples too.

The same is asked of samples that networks are trained on, where there are some beside the calibration samples.

NaN and infinity are refused where samples are read, see ``calibration.data.batches``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from calibration.arrays import AnyArray
from calibration.data.source import spread
from calibration.errors import DataError
from calibration.histogram.quantiles import median
from calibration.lint.changes import channel_axis, layout_words, other_layout
from calibration.lint.finding import SEVERITIES, Finding
from calibration.lint.input_scale import Rescaling
from calibration.lint.label_check import Better, LabelVerdict
from calibration.lint.survey import InputSurvey, Labels, Survey

LEAST_PEAK = 1 / 8
"""Data is too small for a model that rescales only if even its largest value is below this share of the expected."""
ROUGHER = 1.25
"""How much rougher, along rows and along columns, pictures in a wrong layout are; 1.5 to 2.5 on photographs."""
MOST_OF = 0.9
"""The share of the kept samples that must agree on a layout."""
LEAST_PICTURES, NUM_PICTURES = 8, 16
"""Of how many pictures the pixels are looked at."""
ONE_CLASS = 0.9
"""Share of one class that is reported where there is nothing to compare with."""
SURPRISE = 1e-6
"""How unlikely a class's number of samples must be, by the evaluation data's shares, before it is reported."""
NUM_NAMED = 5
SampleUse: TypeAlias = Literal["calibration", "tuning"]
"""What samples are for: ranges, or the weights of a network that is trained."""
VERBS: dict[SampleUse, str] = {"calibration": "calibrate", "tuning": "train"}
JUDGED: dict[SampleUse, str] = {"calibration": "INT8", "tuning": "the networks that are trained on them"}
"""Whose accuracy is judged by the evaluation samples."""


@dataclass(frozen=True)
class LintThresholds:
    """From where on something is reported."""

    min_samples: int = 16
    max_scale_ratio: float = 24.0
    """The root mean square of the data may be so many times what the model or the evaluation data says, or 1 / so many.
    A forgotten or doubled ÷ 255 is a factor of 70 to 255; dark or sparse pictures are within 10."""
    max_imbalance: float = 4.0
    """A class's share may be so many times that in the evaluation data, or 1 / so many."""


def findings(
    data: Survey,
    evaluation: Survey | None,
    model: Mapping[str, Rescaling],
    bounds: LintThresholds,
    use: SampleUse = "calibration",
) -> tuple[Finding, ...]:
    """All that two passes and the graph tell; errors first. Without labels the model need not run.

    Args:
        data: the samples that are asked about.
        evaluation: other samples, where there are some.
        model: what ``rescalings`` found.
        bounds: see there.
        use: what ``data`` is for.
    """
    all_findings = [
        *_ranges(data, evaluation, model, bounds.max_scale_ratio),
        *_layouts(data),
        *_constants(data, use),
        *_numbers(data, bounds.min_samples if use == "calibration" else 0),
        *_classes(data, evaluation, bounds.max_imbalance),
        *_overlap(data, evaluation, use),
    ]
    return worst_first(all_findings)


def worst_first(all_findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """In the order of severity, else as they stand."""
    return tuple(sorted(all_findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def finding_from_labels(where: str, better: Better) -> Finding:
    """The sentence for a change that labels prove to be better."""
    mend = {
        "range": "correct scale, mean and std in preprocess, or the stored samples",
        "channels": "set channels in preprocess, or store them as the model was trained",
        "layout": "store the samples so",
    }
    return Finding(
        "error",
        better.change.code,
        f"{where}: the FP32 model is right on {better.num_right_as_given} of {better.num_samples} labelled samples as "
        f"given, and on {better.num_right} with {better.change.words}, which is not by chance (p = "
        f"{better.p_value:.0e}); {mend[better.change.code]}",
    )


def note_from_labels(where: str, verdict: LabelVerdict) -> Finding:
    """The sentence for labels that prove no change to be better: what was asked, and what that tells."""
    words = {"range": "scale", "layout": "layout", "channels": "channel order"}
    refuted, undecided = (
        ", ".join(words[code] for code in words if code in codes) for codes in (verdict.refuted, verdict.undecided)
    )
    asked = f"the FP32 model is right on {verdict.num_right}; {verdict.num_runs} runs of it"
    if undecided:
        trained = f"{refuted}: as trained; " if refuted else ""
        conclusion = f"{trained}{undecided}: undecided, these samples are too few"
    elif not verdict.is_beyond_one_class:
        conclusion = f"no change of {refuted} helps, but the most frequent class is right as often; check the labels"
    else:
        conclusion = f"{refuted}: as trained"
    return Finding("note", "labels", f"{where}: {verdict.num_samples} labelled samples, {conclusion} ({asked})")


def errors_in(all_findings: Iterable[Finding], allow: Iterable[str]) -> list[Finding]:
    """The findings that make ranges worthless, without those whose codes are allowed."""
    return [f for f in all_findings if f.severity == "error" and f.code not in allow]


def raise_errors(all_findings: Iterable[Finding], allow: Iterable[str]) -> None:
    """Stop on errors.

    Raises:
        DataError: with the sentence of every error whose code is not allowed.
    """
    if errors := errors_in(all_findings, allow):
        raise DataError(f"{'; '.join(f.sentence for f in errors)}; {how_to_allow(errors)}")


def how_to_allow(errors: Iterable[Finding]) -> str:
    """What to do about errors that are none."""
    codes = ", ".join(dict.fromkeys(f'"{f.code}"' for f in errors))
    return f"if this is intended, allow {codes} ([lint] allow, or --allow)"


def _ranges(data: Survey, evaluation: Survey | None, model: Mapping[str, Rescaling], most: float) -> Iterable[Finding]:
    for name, survey in data.inputs.items():
        where = f"{data.where}: input '{name}' has values from {survey.min:.4g} to {survey.max:.4g}"
        if name in model and (wrong := _misfit(survey, model[name], most)):
            yield Finding(
                "error",
                "range",
                f"{where} (preprocessing: {data.preprocess}), {wrong} for the model, which {model[name].describe()}; "
                f"{'scale them only once' if wrong == 'too small' else 'scale them as the model was trained'}",
            )
        elif evaluation and name in evaluation.inputs and _unlike(survey, evaluation.inputs[name], most):
            other = evaluation.inputs[name]
            yield Finding(
                "error",
                "range",
                f"{where}, the evaluation data {evaluation.where} from {other.min:.4g} to {other.max:.4g} (root mean "
                f"square {survey.rms:.3g} against {other.rms:.3g}); both must be on the model's scale: correct one",
            )


def _misfit(survey: InputSurvey, model: Rescaling, most: float) -> str:
    """How the data misses what the model expects; "" if it does not, as far as this can tell."""
    expected = model.rms[0]
    axes = tuple(axis for axis, size in enumerate(expected.shape) if size == 1)
    ratios, peaks = [], []
    for sample in survey.probe:
        if sample.ndim != expected.ndim or any(e not in (1, s) for e, s in zip(expected.shape, sample.shape)):
            return ""
        magnitudes: npt.NDArray[np.float64] = np.abs(sample.astype(np.float64))
        squares = magnitudes**2
        for axis in axes:  # One after the other: ten times as fast on (H, W, 3) as both at once.
            squares, magnitudes = (
                squares.mean(axis=axis, keepdims=True),
                magnitudes.max(axis=axis, keepdims=True),
            )
        ratios.append(squares / expected**2)
        peaks.append(magnitudes / expected)
    if not ratios or any(ratio.shape != ratios[0].shape for ratio in ratios):
        return ""
    ratio = median(np.sqrt(np.mean(ratios, axis=0)))
    if ratio > most:
        return "too large"
    return "too small" if 0 < ratio < 1 / most and median(np.max(peaks, axis=0)) < LEAST_PEAK else ""


def _unlike(survey: InputSurvey, other: InputSurvey, most: float) -> bool:
    """Whether two data sets cannot be of one scale: by their magnitude, or as only one ever falls below 0."""
    if not survey.rms or not other.rms or min(len(survey.probe), len(other.probe)) < LEAST_PICTURES:
        return False
    small, large = sorted([survey, other], key=lambda side: side.rms)
    if large.rms > most * small.rms and small.amax < LEAST_PEAK * large.amax:
        return True
    signs = sorted([survey, other], key=lambda side: side.negative_share)
    return signs[0].negative_share == 0 and signs[1].negative_share > 0.2


def _layouts(data: Survey) -> Iterable[Finding]:
    for name, survey in data.inputs.items():
        shapes = {sample.shape for sample in survey.probe}
        axis = channel_axis(survey.probe[0].shape) if survey.probe else None
        if axis is None or len(survey.probe) < LEAST_PICTURES or any(shape[axis] < 2 for shape in shapes):
            continue
        looked_at = [survey.probe[i] for i in spread(len(survey.probe), NUM_PICTURES)]
        votes = [_is_rougher(sample, axis) for sample in looked_at if sample.min() < sample.max()]
        if len(votes) >= LEAST_PICTURES and sum(votes) >= MOST_OF * len(votes):
            yield Finding(
                "error",
                "layout",
                f"{data.where}: input '{name}' {survey.probe[0].shape} has neighbouring pixels less alike than "
                f"{layout_words(axis)}, in {sum(votes)} of {len(votes)} samples; transpose instead of reshaping",
            )


def _is_rougher(sample: AnyArray, axis: int) -> bool:
    """Whether neighbours differ clearly more as given, along rows and along columns, than in the other layout."""
    as_given = _roughness(sample, axis)
    other = _roughness(other_layout(sample, axis), axis)
    return all(roughness > ROUGHER * of_other for roughness, of_other in zip(as_given, other))


def _roughness(sample: AnyArray, axis: int) -> tuple[float, float]:
    """Mean absolute difference of neighbours, along columns and along rows."""
    pixels = np.moveaxis(sample, axis, 2).astype(np.float32)
    return float(np.abs(np.diff(pixels, axis=0)).mean()), float(np.abs(np.diff(pixels, axis=1)).mean())


def _constants(data: Survey, use: SampleUse) -> Iterable[Finding]:
    num = len(data.constant)
    if not num:
        return
    which = ", ".join(map(str, data.constant[:NUM_NAMED])) + ", …" * (num > NUM_NAMED)
    everything = num == data.num_samples
    yield Finding(
        "error" if everything else "warning",
        "constant",
        f"{data.where}: {num} of {data.num_samples} samples ({which}) have one value in all elements; "
        + (f"there is nothing to {VERBS[use]} on: check how they are read" if everything else "drop them"),
    )


def _numbers(data: Survey, min_samples: int) -> Iterable[Finding]:
    copies = data.num_samples - data.num_distinct
    if copies:
        yield Finding(
            "warning",
            "duplicates",
            f"{data.where}: {copies} of {data.num_samples} samples are exact copies of others, {data.num_distinct} are "
            "distinct; a copy adds nothing: drop it",
        )
    if data.num_distinct < min_samples:
        samples = "sample" if data.num_distinct == 1 else "samples"
        yield Finding(
            "warning",
            "few",
            f"{data.where}: {data.num_distinct} distinct {samples}, at least {min_samples} are needed to see if ranges "
            "settle; add representative ones, some hundreds are usual",
        )


def _classes(data: Survey, evaluation: Survey | None, most: float) -> Iterable[Finding]:
    if data.labels is None:
        return
    per_class = np.bincount(data.labels)
    if evaluation is None or evaluation.labels is None:
        yield from _by_themselves(data, per_class)
        return
    other = np.bincount(evaluation.labels)
    num_classes = max(len(per_class), len(other))
    per_class, other = (np.pad(counts, (0, num_classes - len(counts))) for counts in (per_class, other))
    expected = other / len(evaluation.labels) * len(data.labels)
    missing = [c for c in range(num_classes) if not per_class[c] and other[c] and _rare(0, expected[c])]
    if missing:
        yield _missing(data, missing, f"the evaluation data {evaluation.where} has them")
    skewed = [
        c for c in range(num_classes)
        if per_class[c] and other[c] and not expected[c] / most <= per_class[c] <= expected[c] * most
        and _rare(per_class[c], expected[c])
        and _rare(other[c], per_class[c] / len(data.labels) * len(evaluation.labels))
    ]  # fmt: skip
    if skewed:
        worst = max(skewed, key=lambda c: abs(math.log(per_class[c] / expected[c])))
        yield Finding(
            "warning",
            "imbalance",
            f"{data.where}: {len(skewed)} classes have another share than in the evaluation data, most of all "
            f"{data.name_of(worst)} with {per_class[worst]} of {len(data.labels)} samples where {expected[worst]:.0f} "
            "are its share; sample both in the same way",
        )


def _by_themselves(data: Survey, per_class: Labels) -> Iterable[Finding]:
    """Labels with nothing to compare with: gaps below the largest, and one class that is nearly all."""
    share = len(data.labels if data.labels is not None else ()) / len(per_class)
    missing = [int(c) for c in np.flatnonzero(per_class == 0) if _rare(0, share)]
    if missing:
        yield _missing(data, missing, f"labels go up to {len(per_class) - 1}")
    top = int(np.argmax(per_class))
    if per_class[top] > ONE_CLASS * per_class.sum() and _rare(0, per_class.sum()):
        yield Finding(
            "warning",
            "imbalance",
            f"{data.where}: {per_class[top]} of {per_class.sum()} samples are of class {data.name_of(top)}; draw from "
            "all classes",
        )


def _missing(data: Survey, missing: list[int], why: str) -> Finding:
    names = ", ".join(data.name_of(c) for c in missing[:NUM_NAMED]) + ", …" * (len(missing) > NUM_NAMED)
    return Finding(
        "warning", "classes", f"{data.where}: no sample of {len(missing)} classes ({names}), {why}; add some of each"
    )


def _rare(count: int, expected: float) -> bool:
    """Whether a Poisson number with this mean is so far from it by chance in less than a millionth (Chernoff)."""
    if not count:
        return math.exp(-expected) < SURPRISE
    return expected > 0 and math.exp(count - expected + count * math.log(expected / count)) < SURPRISE


def _overlap(data: Survey, evaluation: Survey | None, use: SampleUse) -> Iterable[Finding]:
    theirs = set(evaluation.hashes if evaluation else ())
    num_shared = sum(sample in theirs for sample in data.hashes)
    if num_shared:
        yield Finding(
            "warning",
            "overlap",
            f"{num_shared} of {data.num_samples} {use} samples are evaluation samples too: the accuracy of "
            f"{JUDGED[use]} is overestimated; keep them apart",
        )
