"""Decide by budgets and a baseline whether an engine may ship."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pipeline.artifact import Engine
from pipeline.command.on_devices import DoneOnDevices, RemoteVerb, run_on
from pipeline.command.on_options import FLAGS, OnOptions, on_options
from pipeline.command.options import (
    BACKEND,
    STORE,
    data_options,
    engine_from,
    given_options,
    is_plan,
    needed,
    output_option,
    plan_options,
    plugin_option,
    refuse_plan_options,
    samples_from,
    specs_of,
)
from pipeline.command.outcomes import Gated, VerbOutcome
from pipeline.command.plan_run import run_plan
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.errors import ConfigError
from pipeline.gate.baseline import gate_from_folder
from pipeline.gate.budget import budgets_from_texts
from pipeline.gate.decide import decide
from pipeline.gate.files import OWN_FILES, check_html, write_gate
from pipeline.gate.gather_inputs import DirectInputs, baseline_engine, check_gate, inputs_from_engines, inputs_from_plan
from pipeline.gate.generations import names_in
from pipeline.gate.inputs import BaselineEngine, GateInputs
from pipeline.gate.record import GateRecord
from pipeline.output import check_replaceable, put, work_folder
from pipeline.page.whole_text import put_text
from pipeline.plan import Plan
from pipeline.remote.device_files import GATE_FOLDER
from pipeline.remote.ssh import destinations_from
from pipeline.retention.promotion import promote
from pipeline.stages.gate import DEFAULT_FOLDER, Gate
from pipeline.stages.validate import Judge

BESIDE_A_PLAN = ("--candidate", "--baseline", "--budget", "--promote", "--allow", "--set", "-o", "--store")
REPLACES = "{} exists, but a gate replaces its whole folder"


@click.command()
@click.argument("plan", type=Path, required=False)
@click.option("--candidate", default="", help="variant of the plan to ship; without a plan, an engine file")
@click.option(
    "--baseline", default="", help="stored baseline, or variant of the plan; without a plan, also an engine file"
)
@click.option("--budget", "budgets", multiple=True, help="limit, such as 'p50_ms <= 1.03 x baseline'; repeatable")
@click.option("--promote", default="", metavar="NAME", help="with a plan: what passes becomes the stored baseline NAME")
@click.option("--reference", type=Path, help="FP32 ONNX model that metric_drop and agreement compare with")
@click.option("--metric", default="", help="accuracy metric, such as top1, f1, rmse, miou, map or module:function")
@click.option("--metric-output", default="", help="output that the metric is computed from, if there are several")
@click.option("--num-threads", default=0, show_default=True, help="threads of a CPU runtime; 0: the runtime's default")
@BACKEND
@plugin_option
@data_options
@stage_options(Gate, "candidate", "baseline", "budgets", "folder", "pays")
@output_option("output folder  [default: trtforge-gate, with the plan's name]")
@plan_options
@on_options
@STORE
def gate(plan: Path | None, on: OnOptions, **options: Any) -> VerbOutcome:
    """Decide whether the candidate of PLAN.toml, or the engine --candidate, may ship: it must meet all budgets.

    Candidate and baseline alternate in one measurement; decisions are made on confidence intervals. Reports are
    written to gate.json, gate.xml (JUnit), gate.md and gate.html. Exit status 0 if all budgets are met, 5 if one is
    not, 6 if one cannot be decided on this machine.

    With --on the engines are built and gated on that machine, against the last good engine that is kept there.
    """
    if on:
        if plan is None or not is_plan(plan):
            raise ConfigError("--on: takes a plan (.toml), whose engines are built there; give one")
        if len(destinations_from(on.addresses)) > 1 and options["output"] is not None:
            raise ConfigError("-o: is one folder, and --on names several machines; leave it out")
        return _gate_on(plan, on, options)
    if plan is None:
        gate_record, folder = _gate_engines(options)
    elif is_plan(plan):
        gate_record, folder = _gate_plan(plan, options)
    else:
        raise ConfigError(f"{plan}: is not a plan (.toml); to gate an engine without one, write --candidate {plan}")
    promoted = promote(options["promote"], folder, options["store"]) if options.get("promote") else ""
    return Gated(gate_record, folder, f"{options['promote']}: {promoted}" if promoted else "")


def _gate_on(path: Path, on: OnOptions, options: dict[str, Any]) -> DoneOnDevices:
    """On other machines."""
    if beside := [flag for flag in given_options() if flag not in (*BESIDE_A_PLAN, "--backend", *FLAGS)]:
        raise ConfigError(f"{beside[0]}: has no effect together with a plan; write it into {path}")
    words = [part for budget in options["budgets"] for part in ("--budget", budget)]
    for flag in ("candidate", "baseline", "promote"):
        words += [f"--{flag}", options[flag]] if options[flag] else []
    backends = (options["backend"],) if "--backend" in given_options() else ()
    chosen: Path | None = options["output"]
    if chosen is not None:
        check_replaceable(chosen, OWN_FILES, f"-o: {REPLACES}")
    verb = RemoteVerb(("gate", *words), GATE_FOLDER, backends)
    plan, outcomes = run_on(path, options["store"], on, options["beside_plan"], verb)
    parts = []
    for outcome in outcomes:
        if not outcome.is_fetched:
            continue
        folder = outcome.folder / "gate"
        gate_record = gate_from_folder(folder)
        if plan.gate.html:
            from pipeline.gate.page import html_from_gate

            put_text(html_from_gate(gate_record, folder), folder / "gate.html")
        if chosen is not None:
            with work_folder(chosen) as work:
                put(Path(shutil.copytree(folder, work / "out")), chosen, work)
            folder = chosen
        parts.append((outcome, Gated(gate_record, folder)))
    return DoneOnDevices(tuple(outcomes), tuple(parts))


def _gate_plan(path: Path, options: dict[str, Any]) -> tuple[GateRecord, Path]:
    if beside := [flag for flag in given_options() if flag not in BESIDE_A_PLAN]:
        raise ConfigError(
            f"{beside[0]}: has no effect together with a plan; write it into {path}, or give --candidate ENGINE"
        )

    def changed(plan: Plan) -> Plan:
        plan_gate = plan.gate
        stage = replace(
            plan_gate,
            candidate=options["candidate"] or plan_gate.candidate,
            baseline=options["baseline"] or plan_gate.baseline,
            budgets=(*plan_gate.budgets, *options["budgets"]),
        )
        changed_plan = replace(plan, gate=stage)
        check_html(changed_plan.gate.html)
        check_gate(changed_plan, options["store"])
        check_replaceable(_folder(changed_plan, options), OWN_FILES, f"[gate] folder: {REPLACES}")
        return changed_plan

    plan, store, results = run_plan(path, options["store"], "gate", changed, options["beside_plan"])
    folder = _folder(plan, options)
    inputs = inputs_from_plan(plan, store, results)
    return _decide(plan.gate, inputs, folder, f"{path}: [gate] budgets"), folder


def _folder(plan: Plan, options: dict[str, Any]) -> Path:
    chosen: Path | None = options["output"]
    return plan.output_folder(plan.gate) if chosen is None else chosen


def _gate_engines(options: dict[str, Any]) -> tuple[GateRecord, Path]:
    refuse_plan_options(options)
    if options.pop("promote"):
        raise ConfigError("--promote: has an effect only on a plan; `trtforge baseline set` sets one from a gate")
    file = needed(options.pop("candidate"), "--candidate", "name the engine that is to ship, or give a PLAN.toml")
    folder: Path = options.pop("output") or Path(DEFAULT_FOLDER)
    check_replaceable(folder, OWN_FILES, f"-o: {REPLACES}")
    budgets, baseline_name, backend = options.pop("budgets"), options.pop("baseline"), options["backend"]
    stage = replace(stage_from_options(Gate(), options), budgets=budgets, baseline=baseline_name)
    budgets_from_texts(budgets, "--budget")
    check_html(stage.html)
    candidate = engine_from(Path(file), backend, False)
    baseline, no_baseline = _baseline_of(baseline_name, candidate, options["store"])
    reference = engine_from(options["reference"], "onnxruntime", False) if options["reference"] else None
    judge = Judge(options["metric"], options["metric_output"], Path())
    samples = samples_from(options, specs_of(candidate))
    direct = DirectInputs(candidate, baseline, no_baseline, reference, samples, judge, options["num_threads"])
    with work_folder(folder) as work:
        inputs = inputs_from_engines(work, direct, stage)
        return _decide(stage, inputs, folder, "--budget"), folder


def _baseline_of(name: str, candidate: Engine, store: Path) -> tuple[BaselineEngine | None, str]:
    """The baseline, an engine's file or a kept one; None and why if there is none."""
    path = Path(name)
    if not name:
        return None, ""
    if path.is_file() or (path.suffix and path.suffix == candidate.path.suffix and path.is_dir()):
        return BaselineEngine(path.name, engine_from(path, candidate.backend, False)), ""
    is_kept = name in names_in(store)
    if not is_kept and (len(path.parts) > 1 or (path.suffix and path.suffix == candidate.path.suffix)):
        raise ConfigError(f"baseline '{name}': there is no such engine; correct the path, or name a stored baseline")
    return baseline_engine(name, store)


def _decide(stage: Gate, inputs: GateInputs, folder: Path, where: str) -> GateRecord:
    """Run the stage, and put its folder where the user wants it by one rename."""
    with work_folder(folder) as work:
        out = work / "out"
        out.mkdir()
        gate_record = decide(stage, out, inputs, budgets_from_texts(stage.budgets, where))
        write_gate(gate_record, out, html=stage.html)
        for log in out.glob("*.log"):
            log.unlink()
        put(out, folder, work)
    return gate_record
