"""Accuracy of INT8: ours by every method and placement, ONNX Runtime's, ModelOpt's and TFLite's, beside FP32.

All get the same network, of `benchmarks/trained.py`, the same calibration samples in the same order, preprocessed once,
and answer the same evaluation samples in the same run. Usage::

    python benchmarks/accuracy.py FOLDER --environments WORK --output benchmarks/results/accuracy.md

WORK/modelopt is ModelOpt's environment, as `benchmarks/calibration.py` makes it; it is made if it is not there. The
page is written again after each network; with `--only` it has the networks of earlier runs too, which `--cache` keeps.
"""

from __future__ import annotations

import argparse
import math
import pickle
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs as a script, from anywhere.

from benchmarks import ctc
from benchmarks.calibration import MODELOPT, cpu_name, make_environment
from benchmarks.candidates import AS_THEY, Candidate, Given, Run, candidates, trtforge
from benchmarks.int8_answers import Answers, answers, num_int8, sqnrs_db
from benchmarks.trained import Trained, evenly, trained_networks
from calibration.analysis.range_choice import choice_from_folder
from pipeline.accuracy.metrics import metric
from pipeline.stats.proportions import holm, mcnemar, tango, wilson

DEFAULT = "auto"
LARGE = 40_000
"""Values of a sample, from where on a network counts as large."""
Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]
RUNS: dict[Run, str] = {"simulation": "sim", "kernels": "kernels", "tflite": "TFLite"}

HEAD = """\
# Accuracy of INT8 by quantizer

Made by `{command}`,
or a network at a time with `--only NAME`, on {day}:
{cpu};
{versions}.

Every candidate got the same FP32 network, the same calibration samples in the same order, preprocessed once, and
answered the same evaluation samples. *ours, auto* is the default. Another tool had at most 10 GiB of memory.

- *run*: **sim**, the Q/DQ model in float (ONNX Runtime, Q/DQ as written): what TensorRT would answer, but for
  its own rounding; **kernels**, ONNX Runtime's default session, in integers; **TFLite**, its built-in integer kernels.
  For ONNX Runtime ours has full int8 weights in **sim**; in **kernels** those that are right on this CPU: without VNNI
  they leave room for sums of two in 16 bits, for which ONNX Runtime's own quantizer has *reduce_range* (7-bit weights).
- *int8*: convolutions and matrix products with 8-bit data and weights, of all; for **kernels**, those that ONNX Runtime
  really computes in integers. For TensorRT ModelOpt leaves some in float, and our default small ones and those of
  attention; who quantizes less is nearer to FP32. *ModelOpt's products in INT8* has the same ones as ModelOpt's model,
  by our default's ranges, to tell the ranges' part from that.
- *right*: the share of samples answered rightly (top-1; of text, whole lines but for spaces), with Wilson's interval;
  *to FP32* in points with Tango's interval for paired samples, and p of McNemar's exact test. Intervals are of 95 %.
- *agrees*: with FP32's arg max, mean over the samples (of text: of its positions). *SQNR*: of what goes into the last
  Softmax, FP32's signal to the difference's noise, in dB, mean over the samples. It tells candidates apart where
  *right* cannot.

*The default against the best other* sets the default against the nearest to FP32 of all others, like against like:
ModelOpt and our other methods for TensorRT against our placement for TensorRT in simulation; ONNX Runtime's and our
other methods against our placement for it in simulation; ONNX Runtime's and TFLite against that on ONNX Runtime's
kernels. A difference is ours less the best other's, with twice the standard error of the paired samples. The best of
several is a little too good by chance. Where ModelOpt's model is the nearest, *ours, the same in INT8* has its products
in INT8: what is then left of the difference comes from the ranges.

*Ours less theirs* does so with each other tool, by right answers: points, Tango's interval, p of McNemar's exact test,
and p corrected for all {num} comparisons of the page (Holm); then the same *without the mean shift*: from each
candidate's logits the mean of its difference to FP32's is taken away, over all samples, by class. Rounding shifts the
logits by a constant as well as adding noise; where FP32 favours some classes too much, a shift the other way is
rewarded, which is luck.

"""


@dataclass(frozen=True, eq=False)
class Row:
    """One candidate, judged."""

    candidate: Candidate
    int8: str
    hits: Bools
    hits_unshifted: Bools
    """Without the mean shift of the logits against FP32's."""
    characters: float
    """Of text, the user's own metric."""
    agreements: Values
    sqnrs_db: Values


@dataclass(frozen=True, eq=False)
class Section:
    """One network, judged."""

    name: str
    num_calibration: int
    sample_size: int
    is_text: bool
    fp32: Bools
    characters: float
    rows: list[Row]
    failures: list[str]
    choice: str
    """What the default chose, in words."""


@dataclass(frozen=True, eq=False)
class Duel:
    """The default against another tool's model."""

    ours: Row
    theirs: Row


def main() -> None:
    """Quantize all networks in all ways and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--environments", type=Path, help="where ModelOpt's environment is; without it, no ModelOpt")
    parser.add_argument("--torch", default="torch>=2.8", help="the requirement that brings torch, which ModelOpt needs")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()), help="of trained networks and results"
    )
    parser.add_argument("--samples", type=int, default=800, help="evaluation samples of a network, evenly spread")
    parser.add_argument("--large-samples", type=int, default=200, help="the same, of a large network")
    parser.add_argument("--lines", type=int, default=100, help="the same, of one that reads text")
    parser.add_argument("--only", default="", help="run the networks whose names have this alone")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    given = parser.parse_args()
    modelopt = None
    if given.environments is not None:
        make_environment(given.environments.resolve() / "modelopt", given.torch)
        modelopt = given.environments.resolve() / "modelopt" / "bin" / "python"
    kept = given.cache / "accuracy.pickle"
    sections: dict[str, Section] = pickle.loads(kept.read_bytes()) if given.only and kept.exists() else {}
    for network in trained_networks(given.folder.resolve(), given.cache, given.only):
        num = given.large_samples if network.calibration[0].size > LARGE else given.samples
        num = given.lines if network.is_text else num
        with tempfile.TemporaryDirectory() as work:
            sections[network.name] = section(evenly(network, num), Path(work), modelopt)
        kept.write_bytes(pickle.dumps(sections))
        text = page(sorted(sections.values(), key=lambda each: each.sample_size))
        if given.output is not None:
            given.output.write_text(text, encoding="utf-8")


def page(sections: list[Section]) -> str:
    """All of it as Markdown."""
    fought = [duels(each.rows) for each in sections]
    corrected = iter(holm([against(d.ours.hits, d.theirs.hits)[1] for own in fought for d in own]))
    parts = ["## The default against the best other", "", *best_table(sections), ""]
    for each in sections:
        parts += section_text(each, corrected)
    return head(sum(map(len, fought))) + "\n".join(parts)


def section_text(each: Section, corrected: Iterator[float]) -> list[str]:
    """One network."""
    counted = f"{len(each.fp32)} evaluation samples, {each.num_calibration} for calibration. auto: {each.choice}."
    failed = [f"{failure}\n" for failure in each.failures]
    tables = [*table(each), "", "Ours less theirs:", "", *duel_table(duels(each.rows), corrected), ""]
    return [f"## {each.name}", "", counted, "", *failed, *tables]


def head(num_duels: int) -> str:
    """What the page is, and what it was made with."""
    packages = ("numpy", "onnx", "onnxruntime", "tensorflow", "tf2onnx")
    versions = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    modelopt = MODELOPT[0].replace("[onnx]==", " ")
    return HEAD.format(
        command="python benchmarks/accuracy.py FOLDER --environments WORK --output benchmarks/results/accuracy.md",
        day=f"{datetime.now(timezone.utc):%Y-%m-%d}",
        cpu=cpu_name(),
        versions=", ".join([*versions, modelopt]),
        num=num_duels,
    )


def section(network: Trained, work: Path, modelopt: Path | None) -> Section:
    """One network: quantized, judged."""
    fp32 = work / "fp32.onnx"
    trtforge("export", network.source, "-o", fp32)
    np.save(work / "calibration.npy", network.calibration)
    material = Given(network.source, fp32, work / "calibration.npy", network.tflite, modelopt)
    reference = answers(Candidate("FP32", fp32, "simulation"), network.evaluation, work)
    rows = []
    failures = [] if network.source.is_dir() else ["TFLite: none, as there is no SavedModel of it."]
    for candidate in candidates(material, work):
        print(
            f"{datetime.now():%H:%M:%S} {network.name}: {candidate.name}, {candidate.run}", file=sys.stderr, flush=True
        )
        try:
            if candidate.failure:
                raise RuntimeError(candidate.failure)
            rows.append(judged(candidate, reference, network, work))
        except Exception as error:  # Another tool's model that cannot be run is a result.
            if candidate.method:
                raise
            failures.append(f"{candidate.name}: none ({str(error).splitlines()[-1][:300]}).")
    choice = choice_from_folder(work / "ranges")
    return Section(
        network.name,
        len(network.calibration),
        network.calibration[0].size,
        network.is_text,
        right(reference.guesses, network),
        characters(reference, network),
        rows,
        list(dict.fromkeys(failures)),
        choice.sentence() if choice else "nothing to choose",
    )


def judged(candidate: Candidate, reference: Answers, network: Trained, work: Path) -> Row:
    """One candidate against FP32 and the labels."""
    found = answers(candidate, network.evaluation, work)
    same = found.guesses == reference.guesses
    unshifted = (found.logits - (found.logits - reference.logits).mean(axis=0)).argmax(axis=-1)
    hits, hits_unshifted = (right(guesses, network) for guesses in (found.guesses, unshifted))
    agreements = same.reshape(len(same), -1).mean(axis=1)
    ratios = sqnrs_db(reference.logits, found.logits)
    return Row(
        candidate, num_int8(candidate, work), hits, hits_unshifted, characters(found, network), agreements, ratios
    )


def right(guesses: npt.NDArray[np.int64], network: Trained) -> Bools:
    """(N,): whether each sample is answered rightly: its class, or its whole text but for spaces."""
    if not network.is_text:
        return np.asarray(guesses == network.labels)
    lines = zip(ctc.texts(guesses), ctc.written(network.labels))
    return np.array([spaceless(read, network) == spaceless(text, network) for read, text in lines])


def spaceless(text: list[int], network: Trained) -> list[int]:
    """Without spaces, such as FP32 reads at the end of nearly each line, where there are none."""
    return [each for each in text if each != network.space]


def characters(found: Answers, network: Trained) -> float:
    """Of text what the user's own metric says, by the product's own call; else NaN."""
    if not network.is_text:
        return math.nan
    own = metric("ctc:character_accuracy", folder=ROOT / "benchmarks")
    return own({"scores": found.logits}, network.labels)


def table(each: Section) -> list[str]:
    """All candidates beside FP32."""
    text = each.is_text
    column, dashes, value = (" characters |", "---:|", f" {each.characters:.4f} |") if text else ("", "", "")
    lines = [f"| candidate | run | int8 | right |{column} to FP32, points | p | agrees | SQNR, dB |"]
    lines += [f"|---|---|---:|---|{dashes}---|---:|---:|---:|", f"| FP32 | | | {share(each.fp32)} |{value} | | | |"]
    for row in each.rows:
        difference, p = against(row.hits, each.fp32)
        named = f"| {row.candidate.name} | {RUNS[row.candidate.run]} | {row.int8} | {share(row.hits)} |"
        own = f" {row.characters:.4f} |" if text else ""
        lines.append(f"{named}{own} {difference} | {p:.2g} | {row.agreements.mean():.4f} | {row.sqnrs_db.mean():.1f} |")
    return lines


def best_table(sections: list[Section]) -> list[str]:
    """The default against the nearest to FP32 of all others, by network, placement and run."""
    lines = ["| network | for, run | int8 | SQNR, dB | best other | less, dB | agrees | best other | less, points |"]
    lines.append("|---|---|---:|---:|---|---|---:|---|---|")
    for each in sections:
        for ours in each.rows:
            if ours.candidate.method != DEFAULT:
                continue
            alike_ours = [row for row in each.rows if alike(row.candidate) == alike(ours.candidate)]
            others = [row for row in alike_ours if row.candidate.method not in (DEFAULT, AS_THEY)]
            best = max(others, key=lambda row: float(row.sqnrs_db.mean()))
            most = max(others, key=lambda row: float(row.agreements.mean()))
            lines.append(
                f"| {each.name} | {ours.candidate.target}, {RUNS[ours.candidate.run]} "
                f"| {ours.int8} | {ours.sqnrs_db.mean():.1f} "
                f"| {best.candidate.name}, {best.int8}: {best.sqnrs_db.mean():.1f}{with_theirs(alike_ours, best)} "
                f"| {paired(ours.sqnrs_db - best.sqnrs_db)} | {ours.agreements.mean():.4f} "
                f"| {most.candidate.name}: {most.agreements.mean():.4f} "
                f"| {paired(100 * (ours.agreements - most.agreements))} |"
            )
    return lines


def with_theirs(rows: list[Row], best: Row) -> str:
    """Beside a model of ModelOpt's: ours with the same products in float."""
    ratios = [row.sqnrs_db.mean() for row in rows if row.candidate.method == AS_THEY]
    is_theirs = best.candidate.name.startswith("ModelOpt")
    return f" (ours, the same in INT8: {ratios[0]:.1f})" if ratios and is_theirs else ""


def paired(differences: Values) -> str:
    """The mean of the paired samples' differences, and twice its standard error."""
    error = 2 * differences.std(ddof=1) / math.sqrt(len(differences))
    return f"{differences.mean():+.2f} ± {error:.2f}"


def duels(rows: list[Row]) -> list[Duel]:
    """The default against each other tool."""
    ours = {alike(row.candidate): row for row in rows if row.candidate.method == DEFAULT}
    return [Duel(ours[alike(row.candidate)], row) for row in rows if not row.candidate.method]


def duel_table(found: list[Duel], corrected: Iterator[float]) -> list[str]:
    """By right answers."""
    lines = ["| | run | points | p | p, corrected | without the mean shift | p |", "|---|---|---|---:|---:|---|---:|"]
    for duel in found:
        ours, theirs = duel.ours, duel.theirs
        points, p = against(ours.hits, theirs.hits)
        unshifted, its_p = against(ours.hits_unshifted, theirs.hits_unshifted)
        named = f"| {theirs.candidate.name} | {RUNS[theirs.candidate.run]} "
        lines.append(f"{named}| {points} | {p:.2g} | {next(corrected):.2g} | {unshifted} | {its_p:.2g} |")
    return lines


def alike(candidate: Candidate) -> tuple[str, Run]:
    """The placement and the run of ours that a model is set against."""
    if candidate.target == "tensorrt" or candidate.name.startswith("ModelOpt"):
        return "tensorrt", "simulation"
    return "onnxruntime", "simulation" if candidate.run == "simulation" else "kernels"


def share(hits: Bools) -> str:
    """The share of right answers with its interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return f"{hits.mean():.4f} ({low:.4f} to {high:.4f})"


def against(first: Bools, second: Bools) -> tuple[str, float]:
    """Points of the first above the second, with the interval; p."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = tango(only_first, only_second, len(first))
    points = 100 * (only_first - only_second) / len(first)
    return f"{points:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})", mcnemar(only_first, only_second)


if __name__ == "__main__":
    main()
