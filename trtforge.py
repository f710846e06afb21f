"""`import trtforge`: the verbs as functions that return their records, for notebooks and scripts.

    import trtforge

    draft = trtforge.init("my_savedmodel", "photos", labels="folders")
    report = trtforge.advise("plan.toml")
    report.record.advice.technique

    model = trtforge.export("my_savedmodel", output="model.onnx")
    ranges = trtforge.calibrate(model, data="calibration.npz", output="ranges")
    int8 = trtforge.quantize(model, ranges=ranges, target="onnxruntime", output="int8.onnx")
    trtforge.benchmark(model, int8, data="evaluation.npz").p50_ms

They do what the command does, with the same store, the same files and the same errors (``trtforge.errors``); what a
command says on stderr meanwhile is said there too, unless ``progress`` is false. What a verb comes to shows itself in a
notebook, and as on the terminal where it is printed. docs/reference/python.md describes all of it.

The functions of single verbs take a file, or a plan (``plan.toml``), and the options of the command as keywords:
``trtforge calibrate --help`` lists them, ``--batch-sizes 1,8`` is ``batch_sizes=[1, 8]``. They raise ConfigError for an
option that the verb does not have. An engine that is out of tolerance, or may not ship, is no error here: ``check()``
raises what the command would end with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any
from typing import cast as _as

from pipeline import __version__, errors
from pipeline.command.outcomes import ComparedOutputs, Gated, Linted, Made, MadeOfPlan, Supported, Timed, VerbOutcome
from pipeline.record import Record
from pipeline.techniques.record import Advice

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.drafting.draft import Draft
    from pipeline.plan import Plan
    from pipeline.store import Store

__all__ = [
    "Advice",
    "ComparedOutputs",
    "Gated",
    "Linted",
    "Made",
    "MadeOfPlan",
    "Record",
    "Report",
    "Supported",
    "Timed",
    "VerbOutcome",
    "__version__",
    "advise",
    "benchmark",
    "build",
    "calibrate",
    "cast",
    "convert",
    "errors",
    "export",
    "gate",
    "infer",
    "init",
    "lint",
    "prune",
    "ptq",
    "quantize",
    "read_report",
    "refit",
    "run",
    "support",
    "tolerate",
    "tune",
    "validate",
]  # fmt: skip

STORE = Path(".trtforge")
"""Where results of plans are stored, unless another folder is named."""
_ALONE = RLock()
"""Calls of several threads go one after the other: what is printed, logged and trusted is the process's."""
PAGE_HEIGHT = 640
"""Of a report in a notebook, pixels."""


@dataclass(frozen=True, repr=False)
class Report(VerbOutcome):
    """What a run or an advice found."""

    record: Record
    """All that report.json says; docs/report-schema.md has every key."""
    folder: Path
    """Where report.json, the raw latencies and, if the plan wants it, report.html lie."""

    def print_to(self, console: Console) -> None:
        """The table and the decision, as the command prints them."""
        from pipeline.report.table import print_table

        print_table(self.record, console)

    def _repr_html_(self) -> str:
        """The page, for a notebook; where it cannot be drawn, the table."""
        from pipeline.report.page import html_from_record

        try:
            page = html_from_record(self.record, self.folder)
        except errors.Unavailable:
            return f"<pre>{escape(str(self))}</pre>"
        return f'<iframe srcdoc="{escape(page)}" style="width:100%;height:{PAGE_HEIGHT}px;border:0"></iframe>'


def run(plan: str | Path, *, store: str | Path = STORE, settings: Sequence[str] = (), progress: bool = True) -> Report:
    """Build, validate and benchmark every variant of a plan, and write its report, as `trtforge run` does.

    Args:
        plan: the plan's file.
        store: where results are kept; what is there already is not made again, but for the benchmark.
        settings: keys with other values than in the file, such as ``build.workspace_mib=2048``.
        progress: say on stderr what is made.

    Raises:
        errors.ConfigError, errors.DataError, errors.Unavailable, errors.StageError, errors.ModelError,
        errors.EngineError, errors.CheckFailed: as the command's exit status says. A variant that is out of tolerance
            is no error here: ``record.variants`` has its ``failures``.
    """
    from pipeline.command.reports import report_of_run

    with _ALONE, errors.as_sentences():
        read, opened = _opened(Path(plan), Path(store), settings, progress=progress)
        record, _ = report_of_run(read, opened)
    return Report(record, read.output_folder(read.report))


def advise(
    plan: str | Path,
    *,
    everything: bool = False,
    store: str | Path = STORE,
    settings: Sequence[str] = (),
    progress: bool = True,
) -> Report:
    """Try the techniques on a plan's network until one holds the bounds of [advise], as `trtforge advise` does.

    ``record.advice`` has the table and what decides. With ``everything``, all are tried, as with ``--all``. The other
    arguments and the errors are those of ``run``; that nothing holds the bounds is no error here
    (``record.advice.outcome``).
    """
    from pipeline.command.reports import report_of_advice

    with _ALONE, errors.as_sentences():
        read, opened = _opened(Path(plan), Path(store), settings, progress=progress)
        record = report_of_advice(read, opened, everything=everything)
    return Report(record, read.output_folder(read.advise))


def _opened(plan: Path, store: Path, settings: Sequence[str], *, progress: bool) -> tuple[Plan, Store]:
    from pipeline.command.options import PlanOptions
    from pipeline.command.plan_run import open_plan

    return open_plan(plan, store, PlanOptions((), tuple(settings), quiet=not progress))


def init(
    source: str | Path, data: str | Path, *, labels: str | Path = "", metric: str = "", store: str | Path = STORE
) -> Draft:
    """Draft a first plan for a network and its data, as `trtforge init` does.

    ``text`` is the plan, for a file in the current folder; ``questions`` says what has to be answered in it first.

    Raises:
        errors.ConfigError, errors.DataError, errors.Unavailable, errors.StageError, errors.ModelError: as the command.
    """
    from pipeline.command.draft import CHOICES, draft_for

    choice = dict.fromkeys(CHOICES, "") | {"data": str(data), "labels": str(labels), "metric": metric}
    with _ALONE, errors.as_sentences():
        return draft_for(str(source), choice | {"signature": "serving_default"}, Path(store), Path())


def read_report(folder: str | Path) -> Report:
    """The report that a run or an advice wrote into a folder.

    Raises:
        errors.ConfigError: there is none, or it is of another version.
    """
    from pipeline.report.table import report_from_json

    return Report(report_from_json(Path(folder) / "report.json"), Path(folder))


def export(source: PathLike[str] | str, **options: Any) -> Made:
    """Convert a trained network to an FP32 ONNX file: `trtforge export`. ``output`` names the file."""
    return _as("Made", _outcome("export", [source], options))


def support(model: PathLike[str] | str, **options: Any) -> Supported:
    """Ask a backend, or the list of a generation of TensorRT, which nodes of a model it takes: `trtforge support`."""
    return _as("Supported", _outcome("support", [model], options))


def lint(model: PathLike[str] | str, **options: Any) -> Linted:
    """Check that samples are as the model was trained on, and represent it: `trtforge lint`."""
    return _as("Linted", _outcome("lint", [model], options))


def convert(source: PathLike[str] | str, **options: Any) -> Made:
    """Convert a SavedModel or Keras file to a float .tflite file: `trtforge convert`."""
    return _as("Made", _outcome("convert", [source], options))


def prune(model: PathLike[str] | str, **options: Any) -> Made:
    """Set weights of an FP32 ONNX file to zero, at once or in training: `trtforge prune`."""
    return _as("Made", _outcome("prune", [model], options))


def calibrate(model: PathLike[str] | str, **options: Any) -> Made:
    """Find the range of each tensor of an FP32 ONNX or .tflite file on samples: `trtforge calibrate`."""
    return _as("Made", _outcome("calibrate", [model], options))


def cast(model: PathLike[str] | str, **options: Any) -> Made | MadeOfPlan:
    """Write FP16 into an FP32 ONNX file: `trtforge cast`."""
    return _as("Made | MadeOfPlan", _outcome("cast", [model], options))


def tune(model: PathLike[str] | str, **options: Any) -> Made | MadeOfPlan:
    """Train weights and ranges for INT8 by distillation, without labels: `trtforge tune`."""
    return _as("Made | MadeOfPlan", _outcome("tune", [model], options))


def quantize(model: PathLike[str] | str, **options: Any) -> Made | MadeOfPlan:
    """Write INT8, as Q/DQ nodes or with dynamic ranges, into an FP32 ONNX file: `trtforge quantize`."""
    return _as("Made | MadeOfPlan", _outcome("quantize", [model], options))


def ptq(model: PathLike[str] | str, **options: Any) -> Made | MadeOfPlan:
    """Write a lower precision into a float .tflite file: `trtforge ptq`."""
    return _as("Made | MadeOfPlan", _outcome("ptq", [model], options))


def tolerate(model: PathLike[str] | str, **options: Any) -> Made | MadeOfPlan:
    """Derive how far a correct engine may be from FP32: `trtforge tolerate`."""
    return _as("Made | MadeOfPlan", _outcome("tolerate", [model], options))


def build(model: PathLike[str] | str, **options: Any) -> Made | MadeOfPlan:
    """Build an engine from an ONNX or .tflite file that carries its precision: `trtforge build`."""
    return _as("Made | MadeOfPlan", _outcome("build", [model], options))


def refit(engine: PathLike[str] | str, model: PathLike[str] | str, **options: Any) -> Made:
    """Make an engine of another one of the same graph with the weights of a model: `trtforge refit`."""
    return _as("Made", _outcome("refit", [engine, model], options))


def infer(engine: PathLike[str] | str, **options: Any) -> Made | MadeOfPlan:
    """Run an engine on all samples and save its outputs: `trtforge infer`."""
    return _as("Made | MadeOfPlan", _outcome("infer", [engine], options))


def validate(
    reference: PathLike[str] | str, *candidate: PathLike[str] | str, **options: Any
) -> ComparedOutputs | MadeOfPlan:
    """Compare an engine or its outputs with FP32's, or all engines of a plan: `trtforge validate`."""
    return _as("ComparedOutputs | MadeOfPlan", _outcome("validate", [reference, *candidate], options))


def benchmark(*engines: PathLike[str] | str, **options: Any) -> Timed | Made:
    """Measure engines of one backend against each other, or all of a plan: `trtforge benchmark`."""
    return _as("Timed | Made", _outcome("benchmark", engines, options))


def gate(*plan: PathLike[str] | str, **options: Any) -> Gated:
    """Decide by budgets whether a plan's engine, or that of ``candidate``, may ship: `trtforge gate`.

    ``outcome`` is ``pass``, ``fail`` or ``not decided``; ``record`` has every check with its interval.
    """
    return _as("Gated", _outcome("gate", plan, options))


def _outcome(verb: str, paths: Sequence[PathLike[str] | str], options: dict[str, Any]) -> VerbOutcome:
    from pipeline.command.call import outcome_of

    with _ALONE:
        return outcome_of(verb, paths, options)
