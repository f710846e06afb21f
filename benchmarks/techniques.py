"""Which technique for which network? `trtforge advise --all` on real networks, beside what is said of each in general.

For each network the whole table, on ONNX Runtime's CPU and LiteRT's, and the claims of the article and of TensorFlow's
documentation with what was measured; in the end how often each claim holds. With ``--cost``, the CPU time of the ladder
on the first network beside that of `trtforge run` for each of its techniques in a store of its own. Usage::

    python -m benchmarks.techniques FOLDER --output benchmarks/results/techniques.md [--digits PLAN] [--cost]

``FOLDER`` holds the networks (``benchmarks.networks.NETWORKS``); ``--digits`` is the demo's plan, after `scripts/demo`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compiled import compile_program
from benchmarks.networks import NETWORKS
from pipeline.machine.identity import this_machine
from pipeline.record import Record
from pipeline.report.advice_table import advice_cells, left_out, size_unit
from pipeline.report.table import report_from_json
from pipeline.techniques.record import Advice

PLAN = """
[model]
source = "{source}"
[data]
metric = "top1"
calibration = {{ path = "{data}", inputs = {{ {input} = "x_calib" }}, labels = "y_calib" }}
evaluation = {{ path = "{data}", inputs = {{ {input} = "x_test" }}, labels = "y_test" }}
preprocess = {{ scale = {scale}, dtype = "float32" }}
"""
LITE1 = """
[model]
source = "{folder}/efficientnet_lite1_savedmodel"
[data]
metric = "top1"
calibration = {{ path = "{folder}/calibration", labels = "{folder}/calibration.csv" }}
evaluation = {{ path = "{folder}/evaluation", labels = "{folder}/evaluation.csv" }}
preprocess = {{ scale = 0.0078125, mean = [0.9921875], dtype = "float32" }}
[lint]
allow = ["classes", "imbalance"]
"""
ADVISE = """
[variants]
backends = ["onnxruntime", "litert"]
[benchmark]
num_threads = 1
[advise]
bounds = ["metric_drop <= 0.02", "p50_ms <= 0.8 x baseline"]
folder = "advice"
[report]
html = false
"""
NAMES = {"kws_dscnn/kws_ref_model": "kws", "resnet8_cifar10/resnet8_savedmodel": "resnet8",
         "fashion_mnist/fashion_mnv2_tiny_savedmodel": "fashion"}  # fmt: skip
LITE1_NAME = "efficientnet_lite1"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Advised:
    """One network's table."""

    name: str
    record: Record
    cpu_seconds: float

    @property
    def advice(self) -> Advice:
        """Of the record."""
        assert self.record.advice is not None, "trtforge advise wrote it"
        return self.record.advice


def cpu_seconds_of(*arguments: str | Path) -> float:
    """CPU seconds of a command of trtforge with all its processes; it may find that a bound does not hold."""
    before = os.times()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 5, 6):
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def plans_in(folder: Path, work: Path) -> Iterator[tuple[str, Path]]:
    """Name and plan of each network that is there, beside what will be made of it."""
    texts = {
        NAMES[network.source]: PLAN.format(
            source=folder / network.source, data=folder / network.data, input=network.input, scale=network.scale
        )
        for network in NETWORKS
        if network.source in NAMES
    }
    if (folder / LITE1_NAME).is_dir():
        texts[LITE1_NAME] = LITE1.format(folder=folder / LITE1_NAME)
    for name, text in texts.items():
        path = work / name / "plan.toml"
        path.parent.mkdir(parents=True)
        path.write_text(text + ADVISE, encoding="utf-8")
        yield name, path


def advised(name: str, plan: Path, folder: Path) -> Advised:
    """Run the whole ladder in a new store."""
    spent = cpu_seconds_of("advise", plan, "--all", "--store", folder / "store", "--set", 'advise.folder="advice"')
    return Advised(name, report_from_json(plan.parent / "advice" / "report.json"), spent)


def table(one: Advised) -> Iterator[str]:
    """Markdown: the table, what was left out, and the decision."""
    unit = size_unit(one.record)[0]
    metric = one.record.metric
    name = "metric" if metric is None else metric.name
    share = f"{100 * one.advice.rows[0].confidence:.3g} %"
    yield f"## {one.name}"
    yield ""
    yield f"Bounds: {', '.join(f'`{bound}`' for bound in one.advice.bounds)}. {one.record.recommendation.sentence}"
    yield ""
    heads = ["variant", "technique", "data", unit, "gzip", f"{name}, % ({share})", f"drop, points ({share})", "p"]
    yield f"| {' | '.join([*heads, 'p50, ms (95 %)', 'made in', 'bounds'])} |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|"
    for cells in advice_cells(one.record, one.advice):
        numbers = [_joined(lines) for lines in (cells.size, cells.compressed, cells.metric, cells.drop)]
        row = [cells.variant.name, cells.rung.title, cells.rung.data, *numbers, cells.p_value, _joined(cells.p50)]
        yield f"| {' | '.join([*row, cells.made, cells.row.outcome])} |"
    yield ""
    yield from (f"- {line}" for line in left_out(one.advice))
    yield ""


def _joined(lines: Sequence[str]) -> str:
    """A number, and what belongs to it in brackets."""
    return lines[0] + (f" ({' to '.join(lines[1:])})" if lines[1:] else "")


def claims(every: Sequence[Advised]) -> Iterator[str]:
    """Markdown: how often each claim holds, and what was measured where."""
    yield "## What is said in general, and what was measured"
    yield ""
    yield "| technique | claim | holds | does not | open | measured |"
    yield "|---|---|---:|---:|---:|---|"
    counts: dict[tuple[str, str], Counter[bool | None]] = {}
    texts: dict[tuple[str, str], list[str]] = {}
    for one in every:
        titles = {rung.technique: rung.title for rung in one.advice.rungs}
        for row in one.advice.rows:
            for claim in row.claims:
                key = titles[row.technique], claim.claim
                counts.setdefault(key, Counter())[claim.holds] += 1
                texts.setdefault(key, []).append(f"{one.name} {row.variant}: {claim.measured}")
    for key, count in counts.items():
        yield f"| {key[0]} | {key[1]} | {count[True]} | {count[False]} | {count[None]} | {'; '.join(texts[key])} |"
    yield ""


def cost(plan: Path, work: Path) -> Iterator[str]:
    """Markdown: the ladder beside each of its rungs run alone, CPU seconds, all in new stores and in one go."""
    ladder = cpu_seconds_of("advise", plan, "--all", "--store", work / "ladder")
    advice = report_from_json(plan.parent / "advice" / "report.json").advice
    assert advice is not None
    alone = []
    for number, rung in enumerate(advice.rungs):
        if rung.outcome in ("not tried", "not possible"):
            continue
        settings = [part for text in rung.settings for part in ("--set", text)]
        alone.append((rung.title, cpu_seconds_of("run", plan, "--store", work / f"rung{number}", *settings)))
    total = sum(seconds for _, seconds in alone)
    yield "## Cost"
    yield ""
    yield (
        f"The whole ladder: {ladder:.1f} CPU s. Its rungs alone, each by `trtforge run` in a store of its own: "
        f"{total:.1f} CPU s ({', '.join(f'{title} {seconds:.1f}' for title, seconds in alone)}). Ratio "
        f"{ladder / total:.2f}."
    )
    yield ""


def main() -> None:
    """Advise for each network, and write the tables."""
    compile_program()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--digits", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="names of networks; empty: all")
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    every = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        plans = list(plans_in(options.folder, work))
        if options.digits:
            plans.append(("digits", options.digits))
        plans = [(title, plan) for title, plan in plans if not options.only or title in options.only]
        for number, (title, plan) in enumerate(plans):
            every.append(advised(title, plan, work / f"s{number}"))
            print(f"{title}: {every[-1].cpu_seconds:.0f} CPU s", flush=True)
        costs = list(cost(plans[0][1], work)) if options.cost else []
    command = " ".join(["python -m benchmarks.techniques", *sys.argv[1:]])
    lines = ["# Techniques", "", f"`{command}` on {this_machine().describe()}.", ""]
    lines += [line for one in every for line in table(one)]
    options.output.write_text("\n".join([*lines, *claims(every), *costs]), encoding="utf-8")


if __name__ == "__main__":
    main()
