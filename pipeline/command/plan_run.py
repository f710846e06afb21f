"""A verb on a plan: run the plan up to it, and print what it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pipeline.artifact import TRAINED, Findings
from pipeline.command.options import PlanOptions, given_options
from pipeline.command.outcomes import Linted, Made, MadeOfPlan, VerbOutcome, failures_of
from pipeline.command.support_table import asked_of
from pipeline.errors import ConfigError
from pipeline.spelling import echo

if TYPE_CHECKING:
    from pipeline.plan import Plan
    from pipeline.results import Results
    from pipeline.store import Entry, Spent, Store

    Change: TypeAlias = Callable[[Plan], Plan]


NOTHING_BESIDE = PlanOptions(flags=())


def run_plan(
    path: Path,
    store: Path,
    until: str,
    change: Change = lambda plan: plan,
    beside_plan: PlanOptions = NOTHING_BESIDE,
) -> tuple[Plan, Store, Results]:
    """Run a plan, changed as the command line says, up to a verb; say on stderr what was made and what was served."""
    from pipeline.flow import run

    plan, opened = open_plan(path, store, beside_plan, until, change)
    return plan, opened, run(plan, opened, until)


def open_plan(
    path: Path,
    store: Path,
    beside_plan: PlanOptions,
    until: str = "benchmark",
    change: Change = lambda plan: plan,
) -> tuple[Plan, Store]:
    """Read a plan, changed as the command line says, and open its store, which says on stderr what it makes."""
    from pipeline.command.bundle_functions import check_functions
    from pipeline.plan import plan_from_text, read_plan

    remember_digests()
    settings, text = beside_plan.settings, beside_plan.text
    plan = read_plan(path, settings) if text is None else plan_from_text(text, path, settings)
    check_functions(plan, until, beside_plan.allow)
    return change(plan), open_store(store, quiet=beside_plan.quiet)


def open_store(folder: Path, *, quiet: bool = False) -> Store:
    """A store that says on stderr what it makes, unless it is to be quiet."""
    from pipeline.machine.progress import working
    from pipeline.store import Store

    return Store(folder) if quiet else Store(folder, _say, working)


def remember_digests() -> None:
    """Digests of files are kept from one process to the next, in the user's cache folder."""
    from calibration.file_digest import remember_in
    from pipeline.machine.user_cache import user_cache

    with suppress(ImportError):  # A Python that was built without SQLite remembers nothing.
        from pipeline.machine.digest_table import VERSION, digest_table

        remember_in(digest_table(user_cache() / f"digests-{VERSION}.sqlite"))


def _say(entry: Entry) -> None:
    how = "served" if entry.served else f"made in {entry.seconds:.1f} s"
    name = entry.digest if entry.stage == "benchmark" else entry.digest[:12]
    variant = f"  {entry.variant}" if entry.variant else ""
    echo(f"trtforge: {entry.stage:<9} {name}  {how}{variant}", err=True)


MOST_QUIET_SECONDS = 2.0
"""Of a shorter run it is not told where the time went."""
SHOWN_SECONDS = 0.1
"""A stage that took less has no line."""


def tell_time(account: Sequence[Entry], total: Spent) -> None:
    """Say on stderr where the time went, by stage, the longest first."""
    from pipeline.store import Spent

    if total.seconds < MOST_QUIET_SECONDS:
        return
    stages: dict[str, Spent] = {}
    for entry in account:
        so_far = stages.get(entry.stage, Spent(0.0, 0.0))
        stages[entry.stage] = Spent(so_far.seconds + entry.seconds, so_far.cpu_seconds + entry.cpu_seconds)
    known = Spent(sum(s.seconds for s in stages.values()), sum(s.cpu_seconds for s in stages.values()))
    stages["the rest"] = Spent(total.seconds - known.seconds, max(total.cpu_seconds - known.cpu_seconds, 0.0))
    echo(f"trtforge: where the time went{'wall s':>10}{'CPU s':>9}", err=True)
    for name, spent in (*sorted(stages.items(), key=lambda item: -item[1].seconds), ("total", total)):
        if spent.seconds >= SHOWN_SECONDS:
            echo(f"trtforge:   {name:<19}{spent.seconds:>10.1f}{spent.cpu_seconds:>9.1f}", err=True)


def by_plan(path: Path, store: Path, until: str, beside_plan: PlanOptions = NOTHING_BESIDE) -> VerbOutcome:
    """A single verb on a plan: what it made.

    Raises:
        ConfigError: an option stands beside the plan, which would have no effect.
    """
    if beside := [flag for flag in given_options() if flag not in ("--store", *beside_plan.flags)]:
        raise ConfigError(f"{beside[0]}: has no effect together with a plan; write it into {path}, or give files")
    plan, _, made = run_plan(path, store, until, beside_plan=beside_plan)
    result = getattr(made, plan.stage(until).RESULT)
    if isinstance(result, Findings):
        return Linted(result.read(), plan.lint.allow)
    if until == "support":
        trained = made.networks[TRAINED]
        return asked_of((trained.quantized or trained.fp32).path, made.support)
    if result is not None and not isinstance(result, Mapping):
        return Made(result)
    verdicts = made.verdicts if until == "validate" else {}
    failures = failures_of({variant.name: verdict.read() for variant, verdict in verdicts.items()})
    return MadeOfPlan({variant.name: artifact for variant, artifact in (result or {}).items()}, failures)
