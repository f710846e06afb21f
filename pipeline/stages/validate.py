"""Judge an engine's outputs against the FP32 model's, without running either again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from calibration.arrays import Bools
from calibration.data.user_function import source_code
from engines import backend, module_of
from engines.contract import Array
from engines.precision import PRECISIONS, Precision
from pipeline.accuracy.bisection import Evidence, TfliteEvidence
from pipeline.accuracy.comparison import (
    NO_ATOLS,
    OutputComparison,
    SavedOutputs,
    Tolerance,
    compare,
)
from pipeline.accuracy.metrics import Metric, metric
from pipeline.accuracy.tolerances import derived_atols, too_noisy
from pipeline.artifact import Outputs, Tolerances, Verdict
from pipeline.engine_runner import SIMULATION, SIMULATOR, ModelRunner
from pipeline.errors import ConfigError
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import waiting
from pipeline.option import check_bounds, option
from pipeline.stage import Stage
from pipeline.tasks.coco import version_behind
from pipeline.tasks.detector import AS_IT_SAYS, Detector


class Labelled(Protocol):
    """What has labels: ``Samples``, or ``LabelFile``."""

    def labels(self) -> Array:
        """(N, ...), in the order of the outputs."""
        ...

    def digest(self) -> str:
        """SHA-256 (hex) of all that the labels depend on."""
        ...


@dataclass(frozen=True)
class LabelFile:
    """The labels alone: an ``.npy`` file, or a key of an ``.npz`` file."""

    path: Path
    key: str

    def labels(self) -> Array:
        """The labels.

        Raises:
            ConfigError: no such file or key.
        """
        try:
            stored = np.load(self.path, allow_pickle=False)
            return np.asarray(stored[self.key] if self.path.suffix == ".npz" else stored)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ConfigError(
                f"{self.path}: has no labels '{self.key}' ({error}); name an .npy file, or an .npz and --labels KEY"
            ) from error

    def digest(self) -> str:
        """SHA-256 (hex) of the file and the key."""
        return hashlib.sha256(self.path.read_bytes() + self.key.encode()).hexdigest()


@dataclass(frozen=True)
class Judge:
    """The task metric of a plan: its name, the output that it reads, and where a user's own function lies."""

    name: str
    output: str
    folder: Path
    detector: Detector = AS_IT_SAYS
    """How a detector's outputs are read."""

    def digest(self) -> str:
        """SHA-256 (hex) of the metric's name and output, and of what stands behind it: a user's source, a library."""
        source = source_code(self.name, self.folder)
        reading = ("" if self.detector == AS_IT_SAYS else repr(self.detector)) + version_behind(self.name)
        return hashlib.sha256(f"{self.name}\0{self.output}\0{reading}".encode() + source).hexdigest()

    def metric(self) -> Metric:
        """The metric, ready to be called."""
        return metric(self.name, self.output, self.folder, self.detector)

    def __call__(self, outputs: Mapping[str, Array], labelled: Labelled | None) -> float:
        """The metric's value on outputs of these samples, in the metric's own unit."""
        return self.with_notes(outputs, labelled)[0]

    def with_notes(self, outputs: Mapping[str, Array], labelled: Labelled | None) -> tuple[float, list[str]]:
        """The same, and sentences on what of the labels it leaves out."""
        metric_function = self.metric()
        labels = labelled.labels() if labelled is not None and metric_function.needs_labels else None
        return metric_function.with_notes(outputs, labels)


@dataclass(frozen=True)
class Judged:
    """By what metric, as what precision, and with what known behind them, outputs are judged."""

    judge: Judge
    precision: str
    evidence: Evidence | TfliteEvidence | None = None
    """None where nothing is known of the engine but its outputs, and for FP32, behind which there is no other model."""
    tolerances: Tolerances | None = None
    """Derived for engines of this kind; None where they are not."""
    is_retrained: bool = False
    """The network has other weights than the trained one, so that its answers differ by more than rounding."""

    def digest(self) -> str:
        """SHA-256 (hex) digests of all of it."""
        known = [part.digest() for part in (self.judge, self.evidence, self.tolerances) if part is not None]
        return " ".join([self.precision, RETRAINED * self.is_retrained, *known])

    def derived(self, tolerance: Tolerance) -> dict[str, Any] | None:
        """The record of the derived tolerances, where they hold.

        Raises:
            ConfigError: they are for engines of another precision, or of an earlier version of the program.
        """
        if self.tolerances is None or not tolerance.derived:
            return None
        record = self.tolerances.read()
        if "indices" not in record:
            raise ConfigError(
                "tolerances: were derived by an earlier version, which does not say on which samples; derive them "
                "again, or pack the bundle again"
            )
        if record["precision"] != self.precision:
            raise ConfigError(
                f"{self.tolerances.path}: is for {record['precision']} engines, {self.precision} is judged; derive "
                "them for it"
            )
        return record


def default_tolerance(precision: Precision) -> Tolerance:
    """What an engine of a precision is held to unless a plan says otherwise."""
    if precision.is_full:
        return Tolerance(min_cosine=0.9999, max_metric_drop=0.001)
    if precision.is_integer:
        return Tolerance(min_cosine=0.9, max_metric_drop=0.01)
    return Tolerance(min_cosine=0.999, max_metric_drop=0.005)


RETRAINED = "retrained"
"""The table of tolerances for networks that were pruned or tuned, in whatever precision: the metric decides."""


def default_tolerances() -> dict[str, Tolerance]:
    """``default_tolerance`` of every precision, by name; and that of networks with other weights."""
    by_precision = {name: default_tolerance(precision) for name, precision in PRECISIONS.items()}
    return {**by_precision, RETRAINED: Tolerance(max_metric_drop=0.02, derived=False)}


USUAL_COSINE = 0.99
"""An output whose noise has more than a seventh of its magnitude, which is a cosine of 0.99 and some 17 dB, is told."""


@dataclass(frozen=True)
class Validate(Stage):
    """Judge an engine's outputs against the FP32 model's, with Polygraphy's comparators and the task metric.

    One table of tolerances per precision, and one for networks that were pruned or tuned. Saved outputs can be judged
    again with other tolerances.
    """

    NEEDS_ENGINES: ClassVar[bool] = True
    NEEDS_TOLERANCES: ClassVar[bool] = True
    RESULT: ClassVar[str] = "verdicts"

    reference: ModelRunner = option("onnxruntime", "runtime for the FP32 reference model")
    tolerances: Mapping[str, Tolerance] = field(
        default_factory=default_tolerances, metadata={"keys": default_tolerances}
    )
    """By precision, and of retrained networks; in a plan each is a table of its own, such as ``[validate.int8]``."""
    num_bisected: int = option(32, "samples used to locate the failing layer of an engine out of tolerance; 0: do not")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, num_bisected=(0, math.inf))

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the verdict depends on."""
        return distribution_versions("polygraphy", "numpy", "onnx", "onnxruntime")

    def modules(self, *inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        known = [each.evidence for each in inputs if isinstance(each, Judged) and each.evidence is not None]
        return (module_of(self.reference), *(name for evidence in known for name in evidence.modules()))

    def tolerance(self, precision: str) -> Tolerance:
        """The tolerances for engines of that precision."""
        return self.tolerances[precision]

    def with_tolerance(self, precision: str, tolerance: Tolerance) -> Validate:
        """The same stage with other tolerances for one precision."""
        return replace(self, tolerances={**self.tolerances, precision: tolerance})

    def __call__(
        self,
        out: Path,
        reference: Outputs,
        candidate: Outputs,
        labelled: Labelled | None,
        judged: Judged,
    ) -> Verdict:
        """Write ``out/verdict.json``: ``passed``, ``failures`` (sentences), ``metric``, ``reference_metric``,
        ``metric_drop`` (positive: worse than FP32), ``agreement`` (share of samples with the same arg max, or null)
        and, by output, Polygraphy's numbers and the element that is worst.

        ``notes`` are sentences about outputs that passed and are far from FP32's, labels that are not counted, and
        outputs that the metric alone judges, since they are lists in the order of scores.

        ``derived`` has the derived tolerances by output, null where none hold. Where the models behind the engine are
        known, the scales of a Q/DQ model are held to its ranges; and if anything fails, the last of ``failures`` says
        where it comes from, and ``suspects`` has the likeliest nodes, see
        ``calibration.analysis.bisection``.

        Raises:
            ConfigError: the outputs do not belong together, or the metric cannot be read from them.
            DataError: the metric needs labels and there are none.
        """  # fmt: skip
        judge, precision = judged.judge, judged.precision
        tolerance = self.tolerance(RETRAINED if judged.is_retrained else precision)
        derived = judged.derived(tolerance)
        atols = derived_atols(derived, tolerance) if derived else NO_ATOLS
        with waiting("comparison of the outputs"):
            expected_answers, answers = SavedOutputs(reference.path), SavedOutputs(candidate.path)
            compared = compare(expected_answers, answers, tolerance, atols)
        lists = judge.metric().lists(expected_answers.arrays) if judge.name else ()
        compared = {n: replace(c, passed=True, failures=()) if n in lists else c for n, c in compared.items()}
        derived = _without(derived, lists)
        failures = [failure for output in compared.values() for failure in output.failures]
        ours, theirs = answers.arrays, expected_answers.arrays
        failures += too_noisy(derived, ours, theirs, tolerance) if derived else []
        value = expected = drop = None
        notes = far_from_reference({name: output for name, output in compared.items() if name not in lists})
        notes += [_of_lists(judge, lists)] if lists else []
        if judge.name:
            value = judge(ours, labelled)
            expected, left_out = judge.with_notes(theirs, labelled)
            notes += left_out
            drop = expected - value if judge.metric().higher_is_better else value - expected
            if not drop <= tolerance.max_metric_drop:
                failures.append(
                    f"{judge.name} cannot be counted, as the network's own answers in FP32 have NaN"
                    if math.isnan(expected)
                    else f"{judge.name} is {value:.4f} against {expected:.4f} of FP32, a drop of {drop:.4f}, "
                    f"above max_metric_drop {tolerance.max_metric_drop:g}"
                )
        failures += self._of_ranges(judged, derived)
        suspects: list[dict[str, Any]] = []
        if failures and judged.evidence and judged.evidence.model and self.num_bisected:
            suspicion, suspects = self._suspicion(judged.evidence, compared, answers.runner)
            failures.append(suspicion)
        verdict = {
            "precision": precision,
            "passed": not failures,
            "failures": failures,
            "notes": notes,
            "suspects": suspects,
            "metric": value,
            "reference_metric": expected,
            "metric_drop": drop,
            "agreement": agreement(ours, theirs, judge.output),
            "comparison": {name: asdict(output) for name, output in compared.items()},
            "tolerance": asdict(tolerance),
            "derived": derived["outputs"] if derived else None,
        }
        (out / "verdict.json").write_text(json.dumps(verdict, indent=1))
        return Verdict(out / "verdict.json")

    def _of_ranges(self, judged: Judged, derived: dict[str, Any] | None) -> list[str]:
        """What is wrong with the ranges that the engine was made with, and with the scales in its model."""
        evidence = judged.evidence
        if evidence is None:
            return []
        unlike = evidence.unlike_ranges(derived) if derived else []
        return [*unlike, *evidence.scale_mismatches()]

    def _suspicion(
        self, evidence: Evidence | TfliteEvidence, compared: Mapping[str, OutputComparison], runner: str
    ) -> tuple[str, list[dict[str, Any]]]:
        """Where failures come from: a sentence, and the likeliest nodes."""
        if reason := backend(self.reference).why_not_run():
            return f"the layer was not searched for: {reason}", []
        with waiting("search for the layer"):
            bisection = evidence.bisect(evidence.affordable(self.num_bisected), self.reference)
        is_engine = runner != SIMULATION  # Of what its own simulation answered no engine is to be suspected.
        ratios = {name: output.sqnr_db for name, output in compared.items() if is_engine}
        return bisection.suspicion(ratios, runner if self.reference == SIMULATOR else ""), bisection.rows()


def _without(derived: dict[str, Any] | None, lists: Sequence[str]) -> dict[str, Any] | None:
    """The derived tolerances, but for those outputs."""
    if derived is None:
        return None
    return {**derived, "outputs": {n: None if n in lists else bound for n, bound in derived["outputs"].items()}}


def _of_lists(judge: Judge, lists: Sequence[str]) -> str:
    return (
        f"{', '.join(lists)}: lists in the order of scores, in which two that change places are the same answer; "
        f"judged by {judge.name} alone"
    )


def far_from_reference(compared: Mapping[str, OutputComparison]) -> list[str]:
    """A sentence for each output that is within its tolerances, and yet differs so much that somebody should know."""
    return [
        f"output '{name}' differs much from FP32's: cosine {output.cosine_min:.3f}, SQNR {output.sqnr_db:.1f} dB"
        for name, output in compared.items()
        if output.passed and output.cosine_min < USUAL_COSINE
    ]


def agreement(ours: Mapping[str, Array], theirs: Mapping[str, Array], output: str) -> float | None:
    """Share of samples whose arg max is that of FP32; None where no output is a (N, classes) array of scores."""
    same = same_arg_max(ours, theirs, output)
    return None if same is None else float(np.mean(same))


def same_arg_max(ours: Mapping[str, Array], theirs: Mapping[str, Array], output: str) -> Bools | None:
    """(N,): whether each sample's arg max is the same; None where no output is a (N, classes) array of scores.

    A sample with NaN among its scores agrees with nothing.
    """
    name = output or (next(iter(ours)) if len(ours) == 1 else "")
    if name not in ours or ours[name].ndim != 2 or ours[name].shape[1] < 2:
        return None
    same = np.argmax(ours[name], axis=1) == np.argmax(theirs[name], axis=1)
    numbers = [~np.isnan(scores[name].astype(np.float64)).any(axis=1) for scores in (ours, theirs)]
    agreeing: Bools = same & numbers[0] & numbers[1]
    return agreeing
