"""What the verbs on a whole plan do, for the command line and for `import trtforge`: make all, and write a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.plan import Plan
    from pipeline.record import Record
    from pipeline.results import Results
    from pipeline.store import Store


def report_of_run(plan: Plan, store: Store) -> tuple[Record, Results]:
    """Build, validate and benchmark every variant, look for what would hold, and write the report.

    Raises:
        ConfigError, DataError, Unavailable, StageError, ModelError, EngineError, CheckFailed: as the stages do.
    """
    from pipeline.flow import run
    from pipeline.remedies.search import find_remedies
    from pipeline.report.write import write_report

    made = run(plan, store, "benchmark")
    find_remedies(plan, store, made)
    return write_report(plan, made, store.account), made


def report_of_advice(plan: Plan, store: Store, *, everything: bool) -> Record:
    """Try the techniques until one holds the bounds of [advise], or with ``everything`` to the end; write the report.

    Raises:
        ConfigError: the plan is a bundle's, or the report's folder holds something else.
        DataError, Unavailable, StageError, ModelError, EngineError, CheckFailed: as the stages do on FP32.
    """
    from pipeline.ladder.climb import climb
    from pipeline.ladder.report import timed, write_advice
    from pipeline.page.template import check_drawable

    if plan.packed.manifest:
        raise ConfigError(
            f"{plan.path}: is the plan of a bundle, which has its models already; advise before it is packed"
        )
    if plan.report.html:
        check_drawable("report.html (or write html = false in [report])")
    plan.report.check_folder(plan.output_folder(plan.advise), "[advise]")
    ascent = climb(plan, store, everything=everything)
    return write_advice(ascent, timed(ascent, store), store)
