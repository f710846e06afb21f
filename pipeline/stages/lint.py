"""Check that calibration samples look like the model's own, and are representative."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from calibration.arrays import AnyArray
from calibration.data.batches import Samples
from calibration.graph.weightless import skeleton_from_file
from calibration.lint.changes import Change, changes_for
from calibration.lint.finding import CODES, Finding
from calibration.lint.findings import (
    LintThresholds,
    SampleUse,
    finding_from_labels,
    findings,
    note_from_labels,
    worst_first,
)
from calibration.lint.input_scale import Rescaling, rescalings
from calibration.lint.label_check import LabelCheck, PredictClass
from calibration.lint.labelled import LabelledPool, LabelledSet
from calibration.lint.survey import Survey, survey
from engines import module_of
from engines.backends import litert
from pipeline.artifact import Findings, ModelFile, OnnxModel, Outputs
from pipeline.engine_runner import ModelRunner, fixed_batch, load_model, padded
from pipeline.errors import ConfigError
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import counting, waiting
from pipeline.option import MOST_THREADS, check_bounds, option
from pipeline.stage import Stage

TOLD_BY_LABELS = {"range", "layout", "channels"}


@dataclass(frozen=True)
class Evaluated:
    """Other samples, and where the FP32 model was run on them already, its outputs."""

    samples: Samples
    outputs: Outputs | None = None
    output: str = ""
    """The one that has class scores; empty where there is but one."""

    def digest(self) -> str:
        """SHA-256 (hex) digests of both."""
        return f"{self.samples.digest()} {self.outputs.digest() if self.outputs else ''} {self.output}"


@dataclass(frozen=True)
class _Asked:
    """What samples are compared with."""

    model: ModelFile
    scales: Mapping[str, Rescaling]
    """How the model itself rescales its inputs."""
    other: Survey | None
    """Of the evaluation samples."""
    output: str


@dataclass(frozen=True)
class Lint(Stage):
    """Check calibration samples before calibrating: scale, layout, constants, duplicates, classes, overlap.

    Also those of [data.tuning], which networks are trained on. One pass over each set of samples, in constant memory.
    With class labels the FP32 model answers for them as given and changed (rescaled, channels reversed, another
    layout), until that is decided.
    """

    RESULT: ClassVar[str] = "findings"

    allow: tuple[str, ...] = option((), "codes of findings that are not treated as errors, such as range")
    min_samples: int = option(16, "report fewer distinct samples than this")
    max_scale_ratio: float = option(
        24.0, "report scales that differ from the model's or the evaluation data's by more than this factor"
    )
    max_imbalance: float = option(
        4.0, "report classes whose share differs from the evaluation data's by more than this factor"
    )
    num_labelled: int = option(1024, "labelled samples of both data sets to run the FP32 model on, at most; 0: none")
    significance: float = option(
        0.002, "significance level: chance that a change of the samples wrongly appears to be better"
    )
    runner: ModelRunner = option("onnxruntime", "runtime for the FP32 model")
    num_threads: int = option(0, "threads of the runner; 0: the runner's default")

    def __post_init__(self) -> None:
        """Check the bounds and codes; ConfigError."""
        check_bounds(
            self,
            min_samples=(1, math.inf),
            max_scale_ratio=(2, math.inf),
            max_imbalance=(1, math.inf),
            num_labelled=(0, math.inf),
            significance=(1e-12, 0.05),
            num_threads=(0, MOST_THREADS),
        )
        for code in self.allow:
            if code not in CODES:
                raise ConfigError(f"allow has '{code}', which no finding has; the codes are {', '.join(CODES)}")

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("numpy", "onnx", "onnxruntime")

    def modules(self, model: ModelFile, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(self._runtime(model)),)

    def _runtime(self, model: ModelFile) -> str:
        return self.runner if isinstance(model, OnnxModel) else litert.NAME

    def __call__(
        self,
        out: Path,
        model: ModelFile,
        data: Samples,
        evaluation: Evaluated | None = None,
        tuning: Samples | None = None,
    ) -> Findings:
        """Write ``out/lint.json``: a list of findings, each with ``severity``, ``code`` and ``sentence``.

        Args:
            out: a folder to write to.
            model: FP32.
            data: the calibration samples.
            evaluation: those that engines are judged by.
            tuning: those that networks are trained on, where they are others than ``data``.

        Raises:
            DataError: samples that do not fit the model, NaN, infinity.
            Unavailable: the runner is not installed.
        """
        scales = rescalings(skeleton_from_file(model.path)) if isinstance(model, OnnxModel) else {}
        sets = [LabelledSet(data, self._survey(data))]
        other = self._survey(evaluation.samples) if evaluation else None
        if evaluation and other:
            sets.append(LabelledSet(evaluation.samples, other, _right(evaluation, other)))
        asked = _Asked(model, scales, other, evaluation.output if evaluation else "")
        shown = self._of_sets(asked, sets, "calibration")
        if tuning is not None:
            surveyed = self._survey(tuning)
            surveyed = replace(surveyed, where=f"{surveyed.where} ([data.tuning])")
            shown += self._of_sets(asked, [LabelledSet(tuning, surveyed)], "tuning")
        (out / "lint.json").write_text(
            json.dumps([asdict(f) for f in worst_first(shown)], indent=1, ensure_ascii=False), encoding="utf-8"
        )
        return Findings(out / "lint.json")

    def _of_sets(self, asked: _Asked, sets: Sequence[LabelledSet], use: SampleUse) -> list[Finding]:
        """On the first of the sets; labels are asked of all of them."""
        bounds = LintThresholds(self.min_samples, self.max_scale_ratio, self.max_imbalance)
        data_findings = findings(sets[0].survey, asked.other, asked.scales, bounds, use)
        known = {finding.code for finding in data_findings if finding.severity == "error"}
        by_labels = self._by_labels(asked.model, sets, asked.output)
        shown = [f for f in by_labels if f.code not in known and not (f.severity == "note" and known & TOLD_BY_LABELS)]
        return [*shown, *data_findings]

    def _survey(self, samples: Samples) -> Survey:
        with counting("samples read", samples.num_samples) as on_sample:
            return survey(samples, self.num_labelled, on_sample)

    def _by_labels(self, model: ModelFile, sets: Sequence[LabelledSet], output: str) -> Iterator[Finding]:
        """What labels tell of the data sets; of both at once, unless their values are on two scales."""
        groups: dict[tuple[str, ...], list[LabelledSet]] = {}
        for each in sets:
            survey = each.survey
            if survey.labels is not None and survey.num_inputs == 1 and survey.inputs and self.num_labelled:
                groups.setdefault(tuple(change.words for change in _changes(survey)), []).append(each)
        groups.pop((), None)
        for group in groups.values():
            pool = LabelledPool(group, self.num_labelled)
            with self._answer(model, output) as answer:
                check = LabelCheck(answer, pool, _changes(group[0].survey))
                with waiting("answers for labelled samples, as given and changed"):
                    verdict = check.verdict(self.significance / len(groups))
            if better := verdict.better:
                where = _names(group[number] for number in better.sets)
                yield finding_from_labels(f"{where} (preprocessing: {group[0].survey.preprocess})", better)
            else:
                yield note_from_labels(_names(group), verdict)

    @contextmanager
    def _answer(self, model: ModelFile, output: str) -> Iterator[PredictClass]:
        """The FP32 model as a function from a sample to its class; -1 where its output is no array of class scores."""
        with load_model(model.path, self._runtime(model), self.num_threads) as runner:
            (spec,) = runner.inputs
            fixed = fixed_batch(runner)

            def answer(sample: AnyArray) -> int:
                outputs = runner.infer(padded({spec.name: sample[None]}, fixed))
                scores = _scores(outputs, output)
                return -1 if scores is None else int(np.argmax(scores[0]))

            yield answer


def _names(sets: Iterable[LabelledSet]) -> str:
    """Where they are, each file once."""
    return " and ".join(dict.fromkeys(each.survey.where for each in sets))


def _changes(survey: Survey) -> list[Change]:
    """What is tried on samples such as these, of one input."""
    (values,) = survey.inputs.values()
    return changes_for(values.probe[0], values.min, values.max)


def _right(evaluation: Evaluated, other: Survey) -> tuple[bool, ...]:
    """Whether the FP32 model was right on each of them; empty where that is not known."""
    if evaluation.outputs is None or other.labels is None:
        return ()
    from pipeline.accuracy.comparison import read_outputs  # With what compares by Polygraphy, which most do without.

    scores = _scores(read_outputs(evaluation.outputs.path), evaluation.output)
    return () if scores is None else tuple((np.argmax(scores, axis=1) == other.labels).tolist())


def _scores(outputs: dict[str, AnyArray], name: str) -> AnyArray | None:
    """The (N, classes) output of this name, or the only one."""
    name = name or (next(iter(outputs)) if len(outputs) == 1 else "")
    return outputs[name] if name in outputs and outputs[name].ndim == 2 and outputs[name].shape[1] > 1 else None
