"""PyTorch networks from the module to INT8: how near, how much of it in integers, how fast, beside other quantizers.

The networks are those of ``benchmarks/torch_networks.py``, with weights that are drawn; the encoder's mask is told by
the words that are 0, so that each has one input. Every one is exported by ``trtforge export``, then quantized by us, by
ONNX Runtime's ``quantize_static`` and by ModelOpt, each in a process of its own, from that same file and the same
samples (``benchmarks/candidates.py``). SQNR is of the outputs, the median over samples; agreement is of the arg max
over classes. Speed is CPU time on one thread, FP32 and INT8 in turns. Run it from the checkout's folder:

    python -m benchmarks.sources --environments WORK --output benchmarks/results/sources.md
"""
# mypy: disable-error-code="misc"

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks import torch_networks
from benchmarks.calibration import make_environment
from benchmarks.candidates import Candidate, Given, candidates, trtforge
from benchmarks.int8_answers import Answers, answers, num_int8, sqnrs_db
from benchmarks.torch_networks import MaskedEncoder, Network, drawn
from engines.backends import onnxruntime, tensorrt_rtx
from engines.contract import Array
from engines.cpu import cpu_name
from engines.onnx_model import facts

NUM_CALIBRATION, NUM_EVALUATION = 128, 500
ROUNDS = 41
DEFAULT = "ours, auto, for"


class WordsAlone(nn.Module):
    """The encoder, whose mask follows from its words."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MaskedEncoder()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(N, 12) whole numbers, 0 where there is no word -> (N, 4)."""
        logits: torch.Tensor = self.encoder(ids, (ids != 0).to(torch.int64))["logits"]
        return logits


def encoder() -> Network:
    """Attention under a mask of minus infinity."""
    torch.manual_seed(0)
    return drawn(WordsAlone()), (torch.ones(2, 12, dtype=torch.int64),)


def pictures(random: np.random.Generator, num: int) -> Array:
    """(N, 3, 32, 32) float32: smooth, as photographs are."""
    coarse = random.normal(size=(num, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    return (coarse + 0.2 * random.normal(size=(num, 3, 32, 32))).astype(np.float32)


def words(random: np.random.Generator, num: int) -> Array:
    """(N, 12) int64: 4 to 12 words, then zeros."""
    ids = random.integers(1, 100, (num, 12))
    ids[np.arange(12) >= random.integers(4, 13, (num, 1))] = 0
    return ids


def series(random: np.random.Generator, num: int) -> Array:
    """(N, 10, 8) float32: random walks."""
    return (random.normal(size=(num, 10, 8)).cumsum(axis=1) / 3).astype(np.float32)


SAMPLES: dict[str, Callable[[np.random.Generator, int], Array]] = {"encoder": words, "recurrent": series}


@dataclass(frozen=True)
class Row:
    """One model of a network."""

    name: str
    int8: str
    sqnr_db: float
    agreement: float
    speed: float
    """Times as fast as FP32; NaN where it is simulated."""
    failure: str = ""


def main() -> None:
    """Export, quantize and compare all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, help="where ModelOpt's environment is; without it, no ModelOpt")
    parser.add_argument("--torch", default="torch==2.13.0", help="the requirement that brings torch for ModelOpt")
    parser.add_argument("--only", default="", help="run the networks whose names have this alone")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    chosen = parser.parse_args()
    modelopt = None
    if chosen.environments is not None:
        folder = chosen.environments.resolve() / "modelopt"
        make_environment(folder, chosen.torch)
        modelopt = folder / "bin" / "python"
    parts = [head()]
    for network in torch_networks.NETWORKS:
        if chosen.only in network.__name__:
            with tempfile.TemporaryDirectory() as work:
                parts.append("\n".join(section(network.__name__, Path(work), modelopt)))
            print(parts[-1], flush=True)
            if chosen.output is not None:
                chosen.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def head() -> str:
    """Of the page."""
    return (
        "# PyTorch networks from the module to INT8\n\nMade by `python -m benchmarks.sources --environments WORK "
        f"--output benchmarks/results/sources.md` on {cpu_name()}, PyTorch {torch.__version__}, ONNX Runtime "
        f"{onnxruntime.versions()['onnxruntime']}: {NUM_CALIBRATION} samples to calibrate, {NUM_EVALUATION} to "
        "compare; weights and samples are drawn. The head of the script says what is measured. *Simulated*: each node "
        "as it is written; *kernels*: as ONNX Runtime runs it, on one thread."
    )


def section(name: str, work: Path, modelopt: Path | None) -> Iterator[str]:
    """The lines on one network."""
    module = sys.modules[__name__] if name == "encoder" else torch_networks
    network, _ = getattr(module, name)()
    random = np.random.default_rng(1)
    drawn_samples = SAMPLES.get(name, pictures)
    calibration: Any = drawn_samples(random, NUM_CALIBRATION)
    evaluation: Any = drawn_samples(random, NUM_EVALUATION)
    np.save(work / "calibration.npy", calibration)
    fp32, start = work / "fp32.onnx", time.perf_counter()
    trtforge("export", f"{module.__spec__.name if module.__spec__ else module.__name__}:{name}", "-o", fp32)
    seconds = time.perf_counter() - start
    reference = answers(Candidate("fp32", fp32, "simulation"), evaluation, work)
    with torch.inference_mode():
        theirs = network(torch.from_numpy(evaluation)).numpy()
    exact = np.median(sqnrs_db(theirs, reference.logits))
    num_nodes = len(onnx.load(fp32).graph.node)
    yield f"## {name}: {num_nodes} nodes, exported in {seconds:.1f} s, {exact:.0f} dB from PyTorch\n"
    yield "| model | products in INT8 | SQNR dB | agreement % | times as fast as FP32 |"
    yield "|---|---|---|---|---|"
    trtforge("cast", fp32, "--data", work / "calibration.npy", "-o", work / "fp16.onnx")
    rows = [judged(Candidate("ours, FP16", work / "fp16.onnx", "simulation"), reference, evaluation, work)]
    given = Given(work / "no saved model", fp32, work / "calibration.npy", None, modelopt)
    rows += [
        Row(each.name, "", np.nan, np.nan, np.nan, each.failure)
        if each.failure
        else judged(each, reference, evaluation, work)
        for each in candidates(given, work)
    ]
    for row in rows:
        speed = "" if np.isnan(row.speed) else f"{row.speed:.2f}"
        said = (
            row.failure.splitlines()[-1][:100]
            if row.failure
            else f"{row.sqnr_db:.1f} | {100 * row.agreement:.1f} | {speed}"
        )
        yield f"| {row.name} | {row.int8 or '–'} | {said} |" + (" | |" if row.failure else "")
    yield ""
    yield verdict(rows)
    yield compiled(work)


def judged(candidate: Candidate, reference: Answers, samples: Any, work: Path) -> Row:
    """Compare one model's outputs with FP32's."""
    found = answers(candidate, samples, work)
    classes = [each.logits.argmax(axis=1) for each in (reference, found)]
    is_fast = candidate.run == "kernels"
    return Row(
        name=f"{candidate.name} ({'kernels' if is_fast else 'simulated'})",
        int8=num_int8(candidate, work) if candidate.name != "ours, FP16" else "",
        sqnr_db=float(np.median(sqnrs_db(reference.logits, found.logits))),
        agreement=float(np.mean(classes[0] == classes[1])),
        speed=speed_up(work / "fp32.onnx", candidate.path, samples[:8]) if is_fast else np.nan,
    )


def speed_up(fp32: Path, int8: Path, feed: Array) -> float:
    """CPU time of FP32 over INT8's, in turns, each engine as ONNX Runtime optimizes it, on one thread."""
    name = onnx.load(fp32, load_external_data=False).graph.input[0].name
    ratios = []
    with ExitStack() as stack:
        runners = [stack.enter_context(onnxruntime.load(path, num_threads=1)) for path in (fp32, int8)]
        for number in range(ROUNDS):
            times = []
            for runner in runners:
                start = time.process_time()
                for _ in range(10):
                    runner.infer({name: feed})
                times.append(time.process_time() - start)
            if number:
                ratios.append(times[0] / times[1])
    return median(ratios)


def verdict(rows: list[Row]) -> str:
    """How far the default is from the best of the others, like against like: ModelOpt's models are for TensorRT."""
    lines = []
    for target, how in (("onnxruntime", "kernels"), ("onnxruntime", "simulated"), ("tensorrt", "simulated")):
        (mine,) = (row for row in rows if row.name == f"{DEFAULT} {target} ({how})")
        others = [row for row in rows if not row.name.startswith("ours") and how in row.name and not row.failure]
        others = [row for row in others if not row.int8.startswith("0/")]  # Which are FP32.
        others = [row for row in others if target == "tensorrt" or not row.name.startswith("ModelOpt")]
        if others:
            best = max(others, key=lambda row: row.sqnr_db)
            other = f"{best.name.rsplit(' (', 1)[0]} ({best.int8})"
            lines.append(f"for {target}, {how} ({mine.int8}): {mine.sqnr_db - best.sqnr_db:+.1f} dB against {other}")
    return f"The default, {'; '.join(lines)}."


def compiled(work: Path) -> str:
    """What TensorRT for RTX's builder makes of ours."""
    if reason := tensorrt_rtx.why_not_build():
        return reason
    model, engine = work / "ours_auto_tensorrt_simulation.onnx", work / "engine.plan"
    shapes = []
    for spec in facts(model).inputs:
        rest = "x".join(map(str, spec.shape[1:]))
        for which, size in (("min", 1), ("opt", 8), ("max", 32)):
            shapes += [f"--{which}-shapes", f"{spec.name}:{size}x{rest}"]
    trtforge("build", model, "--backend", "tensorrt_rtx", "--precision", "int8", *shapes, "-o", engine)
    record = json.loads(engine.with_name(f"{engine.name}.json").read_text(encoding="utf-8"))
    version, found, num = (record[key] for key in ("versions", "num_int8", "num_quantizable"))
    return f"TensorRT for RTX {version['tensorrt_rtx']} compiles {found} of {num} products in INT8."


if __name__ == "__main__":
    main()
