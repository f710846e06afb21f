"""`import trtforge`: the verbs on whole plans as functions that return their records, for notebooks and scripts.

    import trtforge

    draft = trtforge.init("my_savedmodel", "photos", labels="folders")
    report = trtforge.advise("plan.toml")
    report.record.advice.technique

They do what the command does, with the same store, the same files and the same errors (``trtforge.errors``); what a
command says on stderr meanwhile is said there too, unless ``progress`` is false. A report shows itself as its page in
a notebook, and as its table where it is printed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import __version__, errors
from pipeline.record import Record
from pipeline.techniques.record import Advice

if TYPE_CHECKING:
    from pipeline.drafting.draft import Draft
    from pipeline.plan import Plan
    from pipeline.store import Store

__all__ = ["Advice", "Record", "Report", "__version__", "advise", "errors", "init", "read_report", "run"]

STORE = Path(".trtforge")
"""Where results of plans are stored, unless another folder is named."""
WIDTH = 100
"""Of a report's table, characters."""
PAGE_HEIGHT = 640
"""Of a report in a notebook, pixels."""


@dataclass(frozen=True)
class Report:
    """What a run or an advice found."""

    record: Record
    """All that report.json says; docs/report-schema.md has every key."""
    folder: Path
    """Where report.json, the raw latencies and, if the plan wants it, report.html lie."""

    def __str__(self) -> str:
        """The table and the decision, as the command prints them."""
        from rich.console import Console

        from pipeline.report.table import print_table

        text = io.StringIO()
        plain = Console(file=text, width=WIDTH, markup=False, color_system=None, force_jupyter=False)
        print_table(self.record, plain)
        return text.getvalue()

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

    read, opened = _opened(Path(plan), Path(store), settings, progress=progress)
    record = report_of_advice(read, opened, everything=everything)
    return Report(record, read.output_folder(read.advise))


def _opened(plan: Path, store: Path, settings: Sequence[str], *, progress: bool) -> tuple[Plan, Store]:
    from pipeline.command.options import PlanOptions
    from pipeline.command.plan_run import open_plan

    return open_plan(plan, store, PlanOptions((), tuple(settings), quiet=not progress))


def init(
    source: str | Path, data: str | Path, *, labels: str = "", metric: str = "", store: str | Path = STORE
) -> Draft:
    """Draft a first plan for a network and its data, as `trtforge init` does.

    ``text`` is the plan, for a file in the current folder; ``questions`` says what has to be answered in it first.

    Raises:
        errors.ConfigError, errors.DataError, errors.Unavailable, errors.StageError, errors.ModelError: as the command.
    """
    from pipeline.command.draft import CHOICES, draft_for

    choice = dict.fromkeys(CHOICES, "") | {"data": str(data), "labels": labels, "metric": metric}
    return draft_for(str(source), choice | {"signature": "serving_default"}, Path(store), Path())


def read_report(folder: str | Path) -> Report:
    """The report that a run or an advice wrote into a folder.

    Raises:
        errors.ConfigError: there is none, or it is of another version.
    """
    from pipeline.report.table import report_from_json

    return Report(report_from_json(Path(folder) / "report.json"), Path(folder))
