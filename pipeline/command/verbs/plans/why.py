"""Say why a result is made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from pipeline.artifact import PRUNED, TUNED
from pipeline.command.options import SETTINGS, STORE, is_plan
from pipeline.command.plan_run import remember_digests
from pipeline.errors import ConfigError
from pipeline.nightly.walk import walk
from pipeline.nightly.why import History, why_made, why_missing
from pipeline.plan import Plan, read_plan
from pipeline.results import Variant
from pipeline.spelling import echo, nearest
from pipeline.store import Store
from pipeline.variants import variants


@click.command()
@click.argument("what", metavar="DIGEST|PLAN")
@click.argument("variant", default="")
@SETTINGS
@STORE
def why(what: str, variant: str, settings: tuple[str, ...], store: Path) -> None:
    """Print what changed: since the result before DIGEST was made, or since PLAN.toml was last run.

    For a plan: for each variant, or VARIANT alone, such as int8@onnxruntime, the first result that would have to be
    made again, and what differs from the last one like it. Nothing is made.
    """
    if not store.is_dir():
        raise ConfigError(f"{store}: there is no store; run a plan first, or name its store with --store")
    remember_digests()
    if is_plan(Path(what)):
        _tell_plan(read_plan(Path(what), settings), variant, store)
        return
    if variant or settings:
        raise ConfigError(f"{variant or '--set'}: has no effect beside a digest; drop it")
    for sentence in why_made(Store(store).find(what), History(store)):
        echo(sentence)


def _tell_plan(plan: Plan, name: str, store: Path) -> None:
    names = {variant.name: variant for variant in variants(plan, "validate")}
    if name and name not in names:
        raise ConfigError(f"{plan.path}: there is no variant '{name}'{nearest(name, list(names))}")
    history = History(store)
    for each in [names[name]] if name else names.values():
        walked = walk(_of_one(plan, each), store, "validate")
        if walked.missing is None:
            echo(f"{each.name}: up to date, {len(walked.served)} results")
        else:
            missing = walked.missing
            echo(f"{each.name}: {missing.stage} would be made: {'; '.join(why_missing(missing, history))}")


def _of_one(plan: Plan, variant: Variant) -> Plan:
    """The plan with that variant alone, and the pruned network where tuning begins with it."""
    begin = (PRUNED,) if variant.network == TUNED and PRUNED in plan.variants.networks else ()
    chosen = replace(
        plan.variants,
        networks=(*begin, variant.network),
        precisions=(variant.precision.name,),
        backends=(variant.backend,),
    )
    return replace(plan, variants=chosen)
