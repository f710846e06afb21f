"""Accuracy of INT8: ours by every method and placement, ONNX Runtime's, ModelOpt's and TFLite's, beside FP32.

All get the same network, the same calibration samples in the same order, preprocessed once, and answer the same
evaluation samples in the same run. Usage, with a folder laid out as `benchmarks/networks.py` has it::

    python benchmarks/accuracy.py FOLDER --environments WORK --output benchmarks/results/accuracy.md

WORK/modelopt is ModelOpt's environment, as `benchmarks/calibration.py` makes it; it is made if it is not there.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs as a script, from anywhere.

from benchmarks import networks
from benchmarks.calibration import MODELOPT, cpu_name, make_environment
from benchmarks.candidates import Candidate, Given, Run, candidates, trtforge
from calibration.data.preprocess import Preprocess
from engines.backends import onnxruntime
from engines.contract import BuildOptions
from engines.onnx_model import facts
from pipeline.stats.proportions import holm, mcnemar, tango, wilson

Floats = npt.NDArray[np.float32]
BATCH = 100
SIGNIFICANT = 0.05
RUNS: dict[Run, str] = {"simulation": "sim", "kernels": "kernels", "tflite": "TFLite"}

HEAD = """\
# Accuracy of INT8 by quantizer

Made by `{command}` on {day}:
{cpu};
{versions}.

Every candidate got the same FP32 network, the same calibration samples in the same order, preprocessed once, and
answered the same evaluation samples in this run.

- *run*: **sim**, the Q/DQ model in float (ONNX Runtime, Q/DQ as written): what TensorRT would answer, but for
  its own rounding; **kernels**, ONNX Runtime's default session, in integers; **TFLite**, its built-in integer kernels.
- *int8*: convolutions and matrix products with 8-bit data and weights, of all. ModelOpt leaves small ones in float
  (as TensorRT's placement does): such a candidate is more exact because it quantizes less. For **kernels**, those that
  ONNX Runtime really computes in integers.
- *top-1* with Wilson's interval; *to FP32* in points with Tango's interval for paired samples, and p of McNemar's exact
  test. Intervals are of 95 %.
- *agrees*: samples with FP32's arg max. *SQNR*: of what goes into the last Softmax, FP32's signal to the difference's
  noise, in dB, mean over the samples. It tells candidates apart where top-1 cannot.

In *Ours less theirs*, each of our methods is set against each other tool, like against like: ModelOpt, which is made
for TensorRT, against our placement for TensorRT in simulation; ONNX Runtime against our placement for it, in the same
run; TFLite against that on ONNX Runtime's kernels. Points of top-1, Tango's interval, p of McNemar's exact test; *in
italics* where ours is below with p < 0.05, which of equals one comparison in forty is by chance; **bold** where it is
so with p corrected for all {num} comparisons of the page (Holm): of equals, chance makes a bold one in one page of 20.

Of each in italics or bold the page says which of the two is nearer to FP32, and gives the difference *without the mean
shift*: from each candidate's logits the mean of its difference to FP32's is taken away, over all samples, by class.
Rounding shifts the logits by a constant as well as adding noise; where FP32 favours some classes too much, a shift the
other way is rewarded, which is luck.

"""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered on all evaluation samples."""

    guesses: npt.NDArray[np.int64]
    """(N,) arg max of the output."""
    logits: Floats
    """(N, C) what goes into the last Softmax, or the output if there is none."""


@dataclass(frozen=True, eq=False)
class Section:
    """One network, judged."""

    name: str
    counted: str
    fp32: npt.NDArray[np.bool_]
    rows: list[Row]


@dataclass(frozen=True, eq=False)
class Row:
    """One candidate, judged."""

    candidate: Candidate
    int8: str
    hits: npt.NDArray[np.bool_]
    hits_unshifted: npt.NDArray[np.bool_]
    """Without the mean shift of the logits against FP32's."""
    agreement: float
    sqnr_db: float


@dataclass(frozen=True, eq=False)
class Duel:
    """One of our methods against another tool, on the same samples."""

    method: str
    ours: Row
    theirs: Row
    difference: str
    p: float
    corrected_p: float = math.nan
    """For the number of all comparisons of the page."""

    @property
    def is_below(self) -> bool:
        """Whether ours is below, and by chance alone in one of forty comparisons of equals."""
        return self.p < SIGNIFICANT and bool(self.ours.hits.sum() < self.theirs.hits.sum())

    def cell(self) -> str:
        """The difference and its p."""
        mark = ("**" if self.corrected_p < SIGNIFICANT else "*") if self.is_below else ""
        return f"{mark}{self.difference}, p {self.p:.2g}{mark}"


def main() -> None:
    """Quantize all networks in all ways and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--environments", type=Path, help="where ModelOpt's environment is; without it, no ModelOpt")
    parser.add_argument("--torch", default="torch>=2.8", help="the requirement that brings torch, which ModelOpt needs")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    given = parser.parse_args()
    modelopt = None
    if given.environments is not None:
        make_environment(given.environments.resolve() / "modelopt", given.torch)
        modelopt = given.environments.resolve() / "modelopt" / "bin" / "python"
    sections = []
    with tempfile.TemporaryDirectory() as folder:
        for index, network in enumerate(networks.NETWORKS):
            if not (given.folder / network.source).is_dir():
                continue  # A Keras file of the same weights.
            work = Path(folder) / str(index)
            work.mkdir()
            sections.append(section(network, given.folder.resolve(), work, modelopt))
            print(f"{network.name}: {len(sections[-1].rows)} candidates", file=sys.stderr, flush=True)
    text = page(sections)
    print(text)
    if given.output is not None:
        given.output.write_text(text, encoding="utf-8")


def page(sections: list[Section]) -> str:
    """All of it as Markdown."""
    fought = [duels(each.rows) for each in sections]
    corrected = iter(holm([duel.p for own in fought for duel in own]))
    parts = []
    for each, own in zip(sections, fought):
        parts += [f"## {each.name}", "", each.counted, "", *table(each.rows, each.fp32), ""]
        parts += [*duel_tables([replace(duel, corrected_p=next(corrected)) for duel in own]), ""]
    return head(sum(map(len, fought))) + "\n".join(parts)


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


def section(network: networks.Network, folder: Path, work: Path, modelopt: Path | None) -> Section:
    """One network: quantized, judged."""
    fp32 = work / "fp32.onnx"
    trtforge("export", folder / network.source, "-o", fp32)
    preprocess = Preprocess(scale=network.scale, dtype="float32")
    with np.load(folder / network.data) as stored:
        np.save(work / "calibration.npy", preprocess(stored["x_calib"]))
        samples, labels = preprocess(stored["x_test"]).astype(np.float32), stored["y_test"]
        num_calibration = len(stored["x_calib"])
    tflite = folder / network.tflite if network.tflite else None
    material = Given(folder / network.source, fp32, work / "calibration.npy", tflite, modelopt)
    reference = answers(Candidate("FP32", fp32, "simulation"), samples, work)
    hits = reference.guesses == labels
    rows = []
    for candidate in candidates(material, work):
        found = answers(candidate, samples, work)
        agreement = float((found.guesses == reference.guesses).mean())
        quality = sqnr_db(reference.logits, found.logits)
        unshifted = found.logits - (found.logits - reference.logits).mean(axis=0)
        both = (found.guesses == labels, unshifted.argmax(axis=1) == labels)
        rows.append(Row(candidate, num_int8(candidate, work), *both, agreement, quality))
    counted = f"{len(labels)} evaluation samples, {num_calibration} for calibration."
    return Section(network.name, counted, hits, rows)


def answers(candidate: Candidate, samples: Floats, work: Path) -> Answers:
    """Run a model on all samples: (N, ...) float32, preprocessed."""
    if candidate.run == "tflite":
        return tflite_answers(candidate.path, samples)
    model = onnx.load(candidate.path)
    logits, output = logits_of(model), model.graph.output[0].name
    if logits != output:
        model.graph.output.append(onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, None))
    path = work / "run.onnx"
    onnx.save(model, path)
    load = onnxruntime.load if candidate.run == "kernels" else onnxruntime.load_simulation
    name = model.graph.input[0].name
    with load(path, num_threads=1) as runner:
        found = [runner.infer({name: samples[row : row + BATCH]}) for row in range(0, len(samples), BATCH)]
    stacked = {key: np.concatenate([batch[key] for batch in found]) for key in (output, logits)}
    return Answers(stacked[output].argmax(axis=1), stacked[logits])


def logits_of(model: onnx.ModelProto) -> str:
    """The tensor that the last Softmax reads, whatever Q/DQ pairs stand behind it; the output if there is none."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers[model.graph.output[0].name]
    while node.op_type in ("QuantizeLinear", "DequantizeLinear", "Identity", "Cast"):
        node = producers[node.input[0]]
    return str(node.input[0] if node.op_type == "Softmax" else model.graph.output[0].name)


def interpreter_of(path: Path) -> Any:
    """TFLite's, with its own integer kernels, which keeps every tensor."""
    import tensorflow as tf

    resolver = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(
        str(path), experimental_preserve_all_tensors=True, experimental_op_resolver_type=resolver
    )
    interpreter.allocate_tensors()
    return interpreter


def tflite_answers(path: Path, samples: Floats) -> Answers:
    """Run a full-integer TFLite model, a sample at a time."""
    interpreter = interpreter_of(path)
    given, asked = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    softmax = [op["inputs"][0] for op in interpreter._get_ops_details() if op["op_name"] == "SOFTMAX"]
    logits = next(t for t in interpreter.get_tensor_details() if t["index"] == (softmax or [asked["index"]])[-1])
    codes = networks.codes_of(samples, given)
    outputs, kept = [], []
    for code in codes:
        interpreter.set_tensor(given["index"], code[None].reshape(given["shape"]))
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(asked["index"]).reshape(-1))
        kept.append(interpreter.get_tensor(logits["index"]).reshape(-1))
    scale, zero_point = logits["quantization"]
    return Answers(np.array(outputs).argmax(axis=1), (np.array(kept, np.float32) - zero_point) * np.float32(scale))


def num_int8(candidate: Candidate, work: Path) -> str:
    """How many of the convolutions and matrix products are in 8 bits."""
    if candidate.run == "tflite":
        interpreter = interpreter_of(candidate.path)
        dtypes = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
        products = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")
        all_ops = [op for op in interpreter._get_ops_details() if op["op_name"] in products]
        found = sum(all(dtypes[index] == np.int8 for index in op["inputs"][:2]) for op in all_ops)
        return f"{found}/{len(all_ops)}"
    of_all = facts(candidate.path)
    if candidate.run == "simulation":
        return f"{of_all.num_quantized}/{of_all.num_quantizable}"
    built = onnxruntime.build(candidate.path, work / "engine.onnx", BuildOptions(precision="int8"))
    return f"{built.num_int8}/{of_all.num_quantizable}"


def sqnr_db(reference: Floats, found: Floats) -> float:
    """Mean over the samples of 10 log10 (|x|^2 / |x - y|^2): (N, C) and (N, C)."""
    signal = np.square(reference.astype(np.float64)).sum(axis=1)
    noise = np.square(reference.astype(np.float64) - found).sum(axis=1)
    return float(np.mean(10 * np.log10(signal / np.maximum(noise, np.finfo(np.float32).tiny))))


def table(rows: list[Row], fp32: npt.NDArray[np.bool_]) -> list[str]:
    """All candidates beside FP32."""
    lines = ["| candidate | run | int8 | top-1 | to FP32, points | p | agrees | SQNR, dB |"]
    lines += ["|---|---|---:|---|---|---:|---:|---:|", f"| FP32 | | | {share(fp32)} | | | | |"]
    for row in rows:
        difference, p = against(row.hits, fp32)
        named = f"| {row.candidate.name} | {RUNS[row.candidate.run]} | {row.int8} | {share(row.hits)} | {difference} "
        lines.append(f"{named}| {p:.2g} | {row.agreement:.4f} | {row.sqnr_db:.1f} |")
    return lines


def duels(rows: list[Row]) -> list[Duel]:
    """Each method of ours against each other tool, tool by tool."""
    ours = {(row.candidate.method, row.candidate.target, row.candidate.run): row for row in rows}
    methods = [method for method, target, run in ours if (target, run) == ("onnxruntime", "kernels")]
    found = []
    for row in rows:
        for method in methods if not row.candidate.method else ():
            mine = ours[(method, *alike(row.candidate))]
            found.append(Duel(method, mine, row, *against(mine.hits, row.hits)))
    return found


def duel_tables(found: list[Duel]) -> list[str]:
    """Ours less theirs, by method; then what there is to say of those in which ours is below."""
    methods = list(dict.fromkeys(duel.method for duel in found))
    lines = ["Ours less theirs:", "", f"| | run | {' | '.join(methods)} |", "|---|---|" + "---|" * len(methods)]
    for begin in range(0, len(found), len(methods)):
        theirs = found[begin].theirs.candidate
        cells = [duel.cell() for duel in found[begin : begin + len(methods)]]
        lines.append(f"| {theirs.name} | {RUNS[theirs.run]} | {' | '.join(cells)} |")
    below = [duel for duel in found if duel.is_below]
    if not below:
        return [*lines, "", "Ours is below nowhere, not even before the correction."]
    columns = "| ours | below | run | p, corrected | agrees: ours, theirs | SQNR, dB: ours, theirs "
    lines += ["", "Of those in which ours is below:", "", f"{columns}| without the mean shift | p |", "|---" * 8 + "|"]
    for duel in below:
        named = f"| {duel.method} | {duel.theirs.candidate.name} | {RUNS[duel.theirs.candidate.run]} "
        lines.append(f"{named}| {duel.corrected_p:.2g} {nearness(duel.ours, duel.theirs)}")
    return lines


def nearness(ours: Row, theirs: Row) -> str:
    """Cells: which of the two is nearer to FP32, and the difference without the mean shifts."""
    difference, p = against(ours.hits_unshifted, theirs.hits_unshifted)
    agreement = f"{ours.agreement:.4f}, {theirs.agreement:.4f}"
    return f"| {agreement} | {ours.sqnr_db:.1f}, {theirs.sqnr_db:.1f} | {difference} | {p:.2g} |"


def alike(candidate: Candidate) -> tuple[str, Run]:
    """The placement and the run of ours that another tool's model is set against."""
    if candidate.name.startswith("ModelOpt"):
        return "tensorrt", "simulation"
    return "onnxruntime", "simulation" if candidate.run == "simulation" else "kernels"


def share(hits: npt.NDArray[np.bool_]) -> str:
    """Top-1 with its interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return f"{hits.mean():.4f} ({low:.4f} to {high:.4f})"


def against(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> tuple[str, float]:
    """Points of the first above the second, with the interval; p."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = tango(only_first, only_second, len(first))
    points = 100 * (only_first - only_second) / len(first)
    return f"{points:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})", mcnemar(only_first, only_second)


if __name__ == "__main__":
    main()
