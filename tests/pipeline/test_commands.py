"""Each verb directly on files: what it writes, what it prints, what it refuses, and that nothing half-made stays."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from engines import backend
from pipeline.accuracy.comparison import read_outputs, write_outputs

if TYPE_CHECKING:
    from tests.conftest import Command, Said

PROFILE = ("--min-shapes", "image:1x4x8x8", "--opt-shapes", "image:4x4x8x8", "--max-shapes", "image:8x4x8x8")
QUICK = ("--warmup-queries", 1, "--warmup-seconds", 0, "--min-queries", 8, "--min-seconds", 0, "--num-blocks", 4)


@pytest.fixture
def ranges(command: Command, tiny: Path) -> Path:
    """The tiny network's ranges, read as min-max."""
    said = command("calibrate", "tiny.onnx", "--data", "data.npz", "--method", "minmax", "-o", "ranges")
    assert said.status == 0, said.err
    return tiny / "ranges"


@pytest.fixture
def int8(command: Command, ranges: Path) -> Path:
    """The tiny network in INT8 for ONNX Runtime."""
    said = command("quantize", "tiny.onnx", "--ranges", ranges, "--target", "onnxruntime", "-o", "int8.onnx")
    assert said.status == 0, said.err
    return ranges.parent / "int8.onnx"


@pytest.fixture
def outputs(command: Command, tiny: Path) -> tuple[Path, Path]:
    """The tiny network's answers, and the same with every score raised by 0.5 and the best two of sample 0 swapped."""
    assert command("infer", "tiny.onnx", "--data", "data.npz", "-o", "fp32.json").status == 0
    scores = read_outputs(tiny / "fp32.json")["scores"].astype(np.float32) + np.float32(0.5)
    order = np.argsort(scores[0])
    scores[0, order[-2:]] = scores[0, order[:-3:-1]]
    write_outputs(tiny / "other.json", "other", [{"scores": scores}])
    return tiny / "fp32.json", tiny / "other.json"


@pytest.fixture
def ran(command: Command, plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan after a whole run, with its store and report. The first test that asks runs it, others get copies."""
    kept = tmp_path_factory.getbasetemp() / "ran"
    if not kept.exists():
        said = command("run", plan)
        assert said.status == 0, said.err
        kept.mkdir()
        for name in (".trtforge", "trtforge-report"):
            shutil.copytree(plan.parent / name, kept / name)
    else:
        shutil.copytree(kept, plan.parent, dirs_exist_ok=True)
    return plan


def files(folder: Path) -> set[str]:
    """Everything in a folder, hidden or not, but the inputs."""
    return {path.name for path in folder.iterdir()} - {"tiny.onnx", "data.npz", "plan.toml"}


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def one_sentence(said: Said, status: int, words: str) -> None:
    """The call failed with this status, printed nothing on stdout, and its last line on stderr begins so."""
    assert said.status == status, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith(f"trtforge: {words}"), last


def test_export_of_an_onnx_file(command: Command, tiny: Path) -> None:
    said = command("export", "tiny.onnx", "-o", "made/model.onnx")
    assert (said.status, said.out, said.err) == (0, "made/model.onnx\n", "")
    onnx.checker.check_model(str(tiny / "made" / "model.onnx"), full_check=True)
    assert files(tiny) == {"made"}
    assert files(tiny / "made") == {"model.onnx"}


def test_calibrate(command: Command, tiny: Path) -> None:
    said = command("calibrate", "tiny.onnx", "--data", "data.npz", "--limit", 8, "--method", "mse", "-o", "ranges")
    assert (said.status, said.out) == (0, "ranges\n")
    assert said.err.splitlines() == [
        "trtforge: few: data.npz: 8 distinct samples, at least 16 are needed to see if ranges settle; add "
        "representative ones, some hundreds are usual",
        "trtforge: ranges: 8 samples are too few to tell whether ranges settled; add samples",
    ]
    assert files(tiny) == {"ranges"}
    assert files(tiny / "ranges") == {"ranges.json", "histograms.npz", "settling.json"}
    record = json.loads((tiny / "ranges" / "ranges.json").read_text())
    assert "mse" in json.dumps(record)
    image = np.load(tiny / "data.npz")["image"]
    chosen = image[[i * 24 // 8 for i in range(8)]]
    assert record["tensors"]["image"]["max"] == pytest.approx(float(chosen.max()))
    assert record["tensors"]["image"]["min"] == pytest.approx(float(chosen.min()))


def test_calibrate_again_replaces_its_own_folder(command: Command, ranges: Path) -> None:
    before = (ranges / "ranges.json").read_bytes()
    said = command("calibrate", "tiny.onnx", "--data", "data.npz", "--limit", 4, "-o", ranges)
    assert said.status == 0
    assert (ranges / "ranges.json").read_bytes() != before
    assert files(ranges.parent) == {"ranges"}


def test_cast(command: Command, ranges: Path) -> None:
    said = command("cast", "tiny.onnx", "--ranges", ranges, "-o", "fp16.onnx")
    assert (said.status, said.out) == (0, "fp16.onnx\n")
    model = onnx.load("fp16.onnx")
    assert {t.data_type for t in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert files(ranges.parent) == {"ranges", "fp16.onnx"}


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_quantize_with_data_is_quantize_with_ranges(command: Command, ranges: Path, target: str) -> None:
    given = command("quantize", "tiny.onnx", "--ranges", ranges, "--target", target, "-o", "a.onnx")
    found = command(
        "quantize", "tiny.onnx", "--data", "data.npz", "--method", "minmax", "--target", target, "-o", "b.onnx"
    )
    assert (given.status, given.out) == (0, "a.onnx\n")
    assert (found.status, found.out) == (0, "b.onnx\n")
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert "DequantizeLinear" in operators(Path("a.onnx"))
    assert files(ranges.parent) == {"ranges", "a.onnx", "b.onnx"}


def test_quantize_says_on_stderr_what_the_arithmetic_is(command: Command, ranges: Path) -> None:
    said = command(
        "quantize", "tiny.onnx", "--ranges", ranges, "--target", "onnxruntime", "--arithmetic", "u8u8", "-o", "a.onnx"
    )
    assert said.status == 0
    assert "trtforge: a.onnx: arithmetic u8u8, as asked for" in said.err.splitlines()


def test_quantize_leaves_out_what_is_excluded(command: Command, ranges: Path) -> None:
    said = command(
        "quantize", "tiny.onnx", "--ranges", ranges, "--exclude", "Gemm, Conv,GlobalAveragePool", "-o", "a.onnx"
    )
    assert said.status == 0
    assert operators(Path("a.onnx")) == operators(Path("tiny.onnx"))


def test_build_and_infer_on_onnx_runtime(command: Command, int8: Path) -> None:
    built = command("build", int8, "--precision", "int8", "-o", "engine.onnx")
    assert (built.status, built.out) == (0, "engine.onnx\n"), built.err
    record = json.loads(Path("engine.onnx.json").read_text())
    assert (record["backend"], record["precision"]) == ("onnxruntime", "int8")
    said = command("infer", "engine.onnx", "--data", "data.npz", "--batch-size", 7, "-o", "outputs.json")
    assert (said.status, said.out, said.err) == (0, "outputs.json\n", "")
    assert {name: array.shape for name, array in read_outputs(Path("outputs.json")).items()} == {"scores": (24, 3)}
    assert files(int8.parent) == {"ranges", "int8.onnx", "engine.onnx", "engine.onnx.json", "outputs.json"}


def test_the_reference_agrees_with_onnx_runtime(command: Command, outputs: tuple[Path, Path]) -> None:
    assert command("infer", "tiny.onnx", "--backend", "reference", "--data", "data.npz", "-o", "r.json").status == 0
    said = command("validate", outputs[0], "r.json", "--atol", 1e-4)
    assert said.status == 0, said.err
    assert said.out.startswith("passed")


def test_build_for_tensorrt_rtx(command: Command, ranges: Path) -> None:
    if reason := backend("tensorrt_rtx").why_not_build():
        pytest.skip(reason)
    assert command("quantize", "tiny.onnx", "--ranges", ranges, "-o", "int8.onnx").status == 0
    said = command("build", "int8.onnx", "--backend", "tensorrt_rtx", "--precision", "int8", *PROFILE, "-o", "e.rtx")
    assert (said.status, said.out) == (0, "e.rtx\n"), said.err
    record = json.loads(Path("e.rtx.json").read_text())
    assert (record["backend"], record["min_batch"], record["max_batch"]) == ("tensorrt_rtx", 1, 8)
    one_sentence(
        command("infer", "e.rtx", "--data", "data.npz", "-o", "o.json"),
        2,
        "e.rtx: was built by tensorrt_rtx, not onnxruntime; give --backend tensorrt_rtx",
    )
    if backend("tensorrt_rtx").why_not_run():
        said = command("infer", "e.rtx", "--backend", "tensorrt_rtx", "--data", "data.npz", "-o", "o.json")
        one_sentence(said, 3, "no GPU: ")
    simulated = command("validate", "tiny.onnx", "int8.onnx", "--simulate", "--precision", "int8", "--data", "data.npz")
    assert simulated.status == 0, simulated.err
    assert files(ranges.parent) == {"ranges", "int8.onnx", "e.rtx", "e.rtx.json"}


def test_tensorrt_rtx_needs_shapes_for_an_open_batch(command: Command, tiny: Path) -> None:
    if reason := backend("tensorrt_rtx").why_not_build():
        pytest.skip(reason)
    said = command("build", "tiny.onnx", "--backend", "tensorrt_rtx", "-o", "e.rtx")
    one_sentence(said, 4, "tiny.onnx: input 'image' is (?, 4, 8, 8), and no shape range is given for it; give its min")
    assert files(tiny) == set()


def test_a_model_written_over_an_engine_takes_its_record_away(command: Command, ranges: Path) -> None:
    assert command("build", "tiny.onnx", "--backend", "reference", "-o", "x.onnx").status == 0
    assert Path("x.onnx.json").is_file()
    assert command("cast", "tiny.onnx", "--ranges", ranges, "-o", "x.onnx").status == 0
    assert not Path("x.onnx.json").exists()


def test_saved_outputs_are_judged_again(command: Command, outputs: tuple[Path, Path]) -> None:
    loose = command("validate", *outputs, "--precision", "int8", "-o", "verdict.json")
    assert loose.status == 0, loose.err
    assert loose.err == ""
    assert re.search(r"scores +[\d.]+ +[\d.]+ +0\.9\d{5} +\d+\.\d +yes", loose.out)
    assert "same arg max on 95.83% of the samples" in loose.out
    verdict = json.loads(Path("verdict.json").read_text())
    assert (verdict["passed"], verdict["precision"], verdict["metric"]) == (True, "int8", None)
    strict = command("validate", *outputs, "--atol", 0.25)
    assert strict.status == 5
    assert strict.out.startswith("out of bound")
    assert strict.err.startswith("trtforge: out of bound: other.json: output 'scores' differs by up to ")
    assert files(outputs[0].parent) == {"fp32.json", "other.json", "verdict.json"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--atol", 0.25), "differs by up to "),
        (("--min-cosine", 0.99999), "has cosine 0."),
        (("--min-psnr-db", 90), "has PSNR "),
        (("--metric", "mae", "--data", "labels.npy", "--max-metric-drop", 0), "mae is "),
        (("--metric", "top1", "--data", "data.npz", "--labels", "y", "--max-metric-drop", -1), "top1 is "),
    ],
)
def test_every_tolerance_can_fail(
    command: Command, outputs: tuple[Path, Path], options: tuple[object, ...], said: str
) -> None:
    np.save("labels.npy", np.asarray(read_outputs(outputs[0])["scores"]))
    found = command("validate", *outputs, "--precision", "int8", *options)
    assert found.status == 5, found.out
    assert len(found.err.splitlines()) == 1
    assert said in found.err


def test_the_metric_of_saved_outputs(command: Command, outputs: tuple[Path, Path]) -> None:
    right = np.argmax(read_outputs(outputs[0])["scores"], axis=1)
    np.save("labels.npy", right)
    said = command(
        "validate", *outputs, "--precision", "int8", "--metric", "top1", "--data", "labels.npy", "--max-metric-drop", 1
    )
    assert said.status == 0, said.err
    assert f"metric {23 / 24:.4f}, reference 1.0000" in said.out


def test_validate_runs_what_has_not_been_run(command: Command, int8: Path) -> None:
    options = ("--precision", "int8", "--data", "data.npz", "--labels", "y", "--metric", "top1")
    said = command("validate", "tiny.onnx", int8, *options)
    assert said.status == 0, said.err
    assert re.search(r"metric 0\.\d{4}, reference 0\.\d{4}", said.out)
    assert files(int8.parent) == {"ranges", "int8.onnx"}


def test_benchmark(command: Command, int8: Path) -> None:
    said = command(
        "benchmark", "tiny.onnx", int8, "--data", "data.npz", "--batch-sizes", "1,8", *QUICK, "-o", "t/timings.json"
    )
    assert said.status == 0, said.err
    rows = [line.split()[:2] for line in said.out.splitlines() if line.lstrip().startswith(("tiny", "int8"))]
    assert sorted(rows) == [["int8.onnx", "1"], ["int8.onnx", "8"], ["tiny.onnx", "1"], ["tiny.onnx", "8"]]
    assert "at least 8 queries" in " ".join(said.out.split())
    assert max(map(len, said.out.splitlines())) <= 80
    record = json.loads(Path("t/timings.json").read_text())
    assert {row["name"] for row in record["timings"]} == {"tiny.onnx", "int8.onnx"}
    assert files(Path("t")) == {"timings.json", *(row["samples"] for row in record["timings"])}
    assert files(int8.parent) == {"ranges", "int8.onnx", "t"}


def test_benchmark_tells_the_time_of_each_layer(command: Command, tiny: Path) -> None:
    said = command("benchmark", "tiny.onnx", "--data", "data.npz", "--layers", *QUICK, "-o", "timings.json")
    assert said.status == 0, said.err
    assert "tiny.onnx at batch 1: layers (median of 50 runs)" in said.out
    found = json.loads(Path("timings.json").read_text())
    assert found["timings"][0]["split_ms"] is None, "the CPU is no device"
    layers = found["layers"]["tiny.onnx"]["times"]["layers"]
    assert {"Conv", "Gemm"} & {layer["layer"]["kind"].removeprefix("Fused") for layer in layers}
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)


def test_benchmark_says_that_a_backend_does_not_tell_layers(command: Command, tiny: Path) -> None:
    said = command("benchmark", "tiny.onnx", "--data", "data.npz", "--backend", "reference", "--layers", *QUICK)
    assert said.status == 0, said.err
    assert "trtforge: tiny.onnx: its backend does not tell the times of layers" in said.err.splitlines()


def test_benchmark_without_output_leaves_nothing(command: Command, tiny: Path) -> None:
    said = command("benchmark", "tiny.onnx", "--data", "data.npz", *QUICK)
    assert said.status == 0, said.err
    assert files(tiny) == set()


def test_doctor_knows_every_backend(command: Command) -> None:
    said = command("doctor")
    assert (said.status, said.err) == (0, "")
    for name in ("onnxruntime", "reference", "tensorflow", "tensorrt", "tensorrt_rtx"):
        assert re.search(rf"^\W*{name} +\W (yes|no) ", said.out, re.MULTILINE)
        if reason := backend(name).why_not_run():
            assert f"{name}: {reason.removeprefix(f'{name}: ')}" in said.out.splitlines()


def test_show_walks_back_to_the_model(command: Command, ran: Path) -> None:
    verdict = Path(command("validate", ran).out.splitlines()[-1].split("\t")[1])
    said = command("show", verdict.parent.name[:10])
    assert (said.status, said.err) == (0, "")
    lines = [line for line in said.out.splitlines() if re.match(r" *[a-z]+ [0-9a-f]{12}", line)]
    indented = [(len(line) - len(line.lstrip()), line.split()[0]) for line in lines]
    assert indented[:2] == [(0, "validate"), (2, "infer")]
    chain = [(2, "infer"), (4, "build"), (6, "quantize"), (8, "calibrate"), (10, "export")]
    assert [entry for entry in indented if entry in chain][-5:] == chain
    assert "(as above)" in said.out
    assert 'method "minmax"' in said.out
    assert re.search(r'from outside: \{"digest": "([0-9a-f]{64})"\}', said.out)
    one_sentence(command("show", "xyz"), 2, "digest 'xyz': no result in .trtforge; ")
    one_sentence(command("show", ""), 2, "digest '': ")


def test_show_of_a_measurement(command: Command, ran: Path) -> None:
    entry = next(Path(".trtforge/benchmark").iterdir())
    said = command("show", entry.name)
    assert said.out.startswith(f"benchmark {entry.name}  {entry}\n")
    assert len(re.findall(r"^  build ", said.out, re.MULTILINE)) == 2


def test_show_of_nothing(command: Command, tiny: Path) -> None:
    one_sentence(command("show", "abc"), 2, ".trtforge: there is no store; run a plan first, or name its store with")
    assert not Path(".trtforge").exists()


def test_report_prints_and_draws_again(command: Command, ran: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    report = ran.parent / "trtforge-report" / "report.json"
    said = command("report", report, "-o", "elsewhere/page.html")
    assert said.status == 0, said.err
    assert "fp32@onnxruntime" in said.out
    assert said.out.splitlines()[-1] == "elsewhere/page.html"
    assert "<svg" in Path("elsewhere/page.html").read_text()
    assert files(Path("elsewhere")) == {"page.html"}


def test_report_of_something_else(command: Command, tiny: Path) -> None:
    one_sentence(command("report", "none.json"), 2, "none.json: cannot be read (No such file or directory); give the")
    Path("x.json").write_text("[1]")
    one_sentence(command("report", "x.json"), 2, "x.json: schema_version is None, this program reads ")


@pytest.mark.parametrize(
    ("verb", "printed"),
    [
        ("export", r"\S+/export/[0-9a-f]{64}/model\.onnx\n"),
        ("calibrate", r"\S+/calibrate/[0-9a-f]{64}/ranges\n"),
        ("quantize", r"int8@onnxruntime\t\S+/quantize/[0-9a-f]{64}/model\.onnx\n"),
        ("cast", ""),
        ("build", r"fp32@onnxruntime\t\S+/build/\S+\nint8@onnxruntime\t\S+/build/\S+\n"),
    ],
)
def test_a_verb_on_a_plan_prints_what_it_made(command: Command, ran: Path, verb: str, printed: str) -> None:
    said = command(verb, ran)
    assert said.status == 0, said.err
    assert re.fullmatch(printed, said.out)
    assert all(Path(line.split("\t")[-1]).exists() for line in said.out.splitlines())


def test_a_plan_judges_again_without_running_again(command: Command, ran: Path) -> None:
    ran.write_text(ran.read_text() + "\n[validate.int8]\natol = 1e-9\n")
    said = command("validate", ran)
    assert said.status == 5
    made = [line.split()[1] for line in said.err.splitlines() if "made in" in line]
    assert set(made) == {"validate"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "plan.toml", "--target", "tensorrt"),
        ("calibrate", "plan.toml", "-o", "x"),
        ("build", "plan.toml", "--precision", "int8"),
        ("validate", "plan.toml", "tiny.onnx"),
        ("benchmark", "plan.toml", "tiny.onnx"),
        ("report", "plan.toml", "-o", "x.html"),
        ("export", "plan.toml", "--no-fold"),
    ],
)
def test_options_beside_a_plan_are_refused_not_ignored(
    command: Command, plan: Path, arguments: tuple[str, ...]
) -> None:
    said = command(*arguments)
    assert said.status == 2
    assert said.out == ""
    assert re.match(r"trtforge: \S+: has no effect beside a plan; ", said.err)
    assert files(plan.parent) == set()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("calibrate", "tiny.onnx", "-o", "r"), 2, "--data is missing: name samples; this tool never makes up data"),
        (("calibrate", "tiny.onnx", "--data", "data.npz"), 2, "-o is missing: name the folder to write the ranges to"),
        (("quantize", "tiny.onnx", "--data", "data.npz"), 2, "-o is missing: name the ONNX file to write"),
        (("build", "tiny.onnx"), 2, "-o is missing: name the engine to write"),
        (("infer", "tiny.onnx", "--data", "data.npz"), 2, "-o is missing: name the file for the outputs"),
        (("infer", "tiny.onnx", "-o", "o.json"), 2, "--data is missing: "),
        (("validate", "a.json"), 2, "CANDIDATE is missing: name outputs or an engine to judge"),
        (("validate", "tiny.onnx", "tiny.onnx"), 2, "--data is missing: "),
        (("benchmark", "tiny.onnx"), 2, "--data is missing: "),
        (("calibrate", "no.onnx", "--data", "data.npz", "-o", "r"), 2, "no.onnx: does not exist; give an ONNX file"),
        (("cast", ".", "--data", "data.npz", "-o", "r"), 2, ".: is a folder; give an ONNX file"),
        (("infer", "no.onnx", "--data", "data.npz", "-o", "o"), 2, "no.onnx: does not exist; give an engine that "),
        (("infer", ".", "--data", "data.npz", "-o", "o"), 2, ".: is a folder; give an engine that "),
        (("infer", "data.npz", "--data", "data.npz", "-o", "o"), 4, "data.npz: "),
        (("validate", "no.json", "no.json"), 2, "no.json: does not exist; give a file that `trtforge infer` or"),
        (("export", "no", "-o", "x.onnx"), 2, "no: does not exist; give a SavedModel folder, a .keras, .h5 or .onnx"),
        (("export", ".", "-o", "x.onnx"), 2, ".: is a folder without saved_model.pb; a SavedModel has that file"),
        (("export", "data.npz", "-o", "x.onnx"), 2, "data.npz: is none of SavedModel folder, .keras, .h5, .onnx;"),
        (("build", "data.npz", "-o", "x.onnx"), 4, "data.npz: is not a whole ONNX file ("),
        (("quantize", "tiny.onnx", "--ranges", "no", "-o", "x"), 2, "no/ranges.json: cannot be read (No such file"),
        (
            ("quantize", "tiny.onnx", "--ranges", "no", "--data", "data.npz", "-o", "x"),
            2,
            "--data: has no effect beside --ranges; drop one of the two",
        ),
        (
            ("quantize", "tiny.onnx", "--ranges", "no", "--method", "mse", "-o", "x"),
            2,
            "--method: has no effect beside --ranges; drop one of the two",
        ),
    ],
)
def test_what_is_missing(command: Command, tiny: Path, arguments: tuple[str, ...], status: int, said: str) -> None:
    one_sentence(command(*arguments), status, said)
    assert files(tiny) == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "none"), "none: does not exist; correct the path, or give module:function"),
        (("--data", "empty"), "empty: holds no .npz, .npy, .jpg, .jpeg or .png file; put samples there"),
        (("--data", "tiny.onnx"), "tiny.onnx: is a '.onnx' file, .npz, .npy or a folder is expected; "),
        (("--data", "shape.npz"), "shape.npz: input 'image' is float32 (1, 4, 8, 7), the model takes (N, 4, 8, 8); "),
        (("--data", "dtype.npz"), "dtype.npz: input 'image' is float64 (1, 4, 8, 8), the model takes float32; "),
        (("--data", "nan.npz"), "nan.npz: input 'image' has NaN in sample 5, finite numbers are expected; "),
        (("--data", "data.npz", "--input", "image"), "--input 'image': is not NAME=KEY; write --input image=x_test"),
        (("--data", "data.npz", "--input", "imag=y"), "data.npz: inputs names 'imag', the model's inputs are 'image'"),
        (("--data", "data.npz", "--input", "image=z"), "data.npz: "),
        (("--data", "data.npz", "--limit", -1), "data.npz: limit is -1, 0 (all) or more is expected; correct it"),
        (("--data", "data.npz", "--batch-size", 0), "batch_size is 0, but must be at least 1; correct it"),
        (("--data", "data.npz", "--preprocess", "scale = "), "--preprocess 'scale = ': Invalid value "),
        (("--data", "data.npz", "--preprocess", "scale=1}\ny={"), "--preprocess 'scale=1}\\ny={': "),
        (("--data", "data.npz", "--preprocess", "scal = 2"), "--preprocess: unknown key 'scal'; did you mean 'scale'?"),
        (("--data", "data.npz", "--preprocess", "scale = '2'"), "--preprocess: [scale] is '2', a text, but takes a nu"),
        (("--data", "data.npz", "--preprocess", "scale = 0"), "--preprocess: scale is [0], a 0 in it leaves no signal"),
        (("--data", "data.npz", "--preprocess", "crop = [4, 4]"), "data.npz: "),
    ],
)
def test_bad_data(command: Command, tiny: Path, options: tuple[object, ...], said: str) -> None:
    image = np.load("data.npz")["image"]
    broken = image.copy()
    broken[5, 1, 2, 3] = np.nan
    np.savez("shape.npz", image=image[..., :7])
    np.savez("dtype.npz", image=image.astype(np.float64))
    np.savez("nan.npz", image=broken)
    Path("empty").mkdir()
    before = files(tiny)
    found = command("calibrate", "tiny.onnx", *options, "-o", "ranges")
    assert found.status == 2, found.err
    assert found.out == ""
    assert found.err.replace("\n", "\\n").startswith(f"trtforge: {said}")
    assert files(tiny) == before


def test_labels_are_missing(command: Command, outputs: tuple[Path, Path]) -> None:
    metric = ("--metric", "top1")
    one_sentence(command("validate", *outputs, *metric), 2, "--data is missing: the metric compares with labels; name")
    said = command("validate", *outputs, *metric, "--data", "data.npz")
    one_sentence(said, 2, "--labels is missing: name the key of the labels in data.npz")
    one_sentence(command("validate", *outputs, *metric, "--data", "data.npz", "--labels", "z"), 2, "data.npz: has no ")
    said = command("validate", "tiny.onnx", outputs[1], *metric, "--data", "data.npz")
    one_sentence(said, 2, "data.npz: has no labels, the metric compares with them; set labels")
    said = command("validate", *outputs, "--metric", "top7", "--data", "data.npz", "--labels", "y")
    one_sentence(said, 2, "metric 'top7': is not one of top1, top5, mae, cosine, auc, nor module:function; did you")


def test_a_truncated_model(command: Command, tiny: Path) -> None:
    Path("half.onnx").write_bytes(Path("tiny.onnx").read_bytes()[:-40])
    for arguments in (
        ("calibrate", "half.onnx", "--data", "data.npz", "-o", "x"),
        ("quantize", "half.onnx", "--data", "data.npz", "-o", "x"),
        ("build", "half.onnx", "-o", "x"),
        ("export", "half.onnx", "-o", "x"),
    ):
        one_sentence(command(*arguments), 4, "half.onnx: is not a whole")
    one_sentence(command("infer", "half.onnx", "--data", "data.npz", "-o", "x"), 4, "half.onnx: ")
    assert files(tiny) == {"half.onnx"}


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--min-shapes", "image:1x4x8"), 2, "shapes of 'image': only min given; give min, opt and max"),
        (("--opt-shapes", "image1x4x8"), 2, "--opt-shapes 'image1x4x8': is not NAME:1x32x32x3"),
        (("--max-shapes", "image:1xAx8"), 2, "--max-shapes 'image:1xAx8': is not NAME:1x32x32x3"),
        (
            ("--min-shapes", "image:2x4x8x8", "--opt-shapes", "image:1x4x8x8", "--max-shapes", "image:1x4x8x8"),
            2,
            "shapes of 'image': min (2, 4, 8, 8), opt (1, 4, 8, 8), max (1, 4, 8, 8) are not positive and in order; ",
        ),
        (
            ("--min-shapes", "image:2x4x8x8", "--opt-shapes", "image:2x4x8", "--max-shapes", "image:2x4x8x8"),
            2,
            "shapes of 'image': min, opt and max have [3, 4] dimensions; give equally many",
        ),
    ],
)
def test_bad_shapes(command: Command, tiny: Path, options: tuple[str, ...], status: int, said: str) -> None:
    one_sentence(command("build", "tiny.onnx", *options, "-o", "e.onnx"), status, said)
    assert files(tiny) == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch-sizes", "1,x"), "'1,x': is not a list of whole numbers; write 1,8,32"),
        (("--batch-sizes", ""), "batch_sizes is empty; name at least one, such as 1"),
        (("--batch-sizes", "64"), "[benchmark] batch_sizes has 64, but there are 24 samples to time with; give sizes"),
        (("--batch-sizes", "0"), "batch_sizes is 0, but must be at least 1; correct it"),
        (("--num-blocks", 1), "benchmark: num_blocks is 1, must be at least 4; raise it"),
    ],
)
def test_bad_options_of_benchmark(command: Command, tiny: Path, options: tuple[object, ...], said: str) -> None:
    one_sentence(command("benchmark", "tiny.onnx", "--data", "data.npz", *options), 2, said)
    assert files(tiny) == set()


def test_two_engines_of_one_name(command: Command, tiny: Path) -> None:
    Path("other").mkdir()
    Path("other/tiny.onnx").write_bytes(Path("tiny.onnx").read_bytes())
    said = command("benchmark", "tiny.onnx", "other/tiny.onnx", "--data", "data.npz", *QUICK)
    one_sentence(said, 2, "benchmark: two engines have the same file name; rename one")


def test_ranges_of_another_model(command: Command, ranges: Path, int8: Path) -> None:
    one_sentence(command("quantize", int8, "--ranges", ranges, "-o", "x.onnx"), 2, "ranges: were found on model ")
    assert files(ranges.parent) == {"ranges", "int8.onnx"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--backend", "onnxruntime", "--dla-core", 0),
            "--dla-core: has no effect on an engine for onnxruntime, it is for tensorrt and tensorrt_rtx; drop it",
        ),
        (
            ("--backend", "reference", "--no-timing-cache"),
            "--timing-cache: has no effect on an engine for reference, it is for tensorrt; drop it",
        ),
        (
            ("--backend", "tensorrt", "--compute-capabilities", "8.6"),
            "--compute-capabilities: has no effect on an engine for tensorrt, it is for tensorrt_rtx; drop it",
        ),
        (
            ("--backend", "onnxruntime", "--int8", "native", "--precision", "int8"),
            "--int8: has no effect on an engine for onnxruntime, it is for tensorrt and tensorrt_rtx; drop it",
        ),
    ],
)
def test_options_of_the_builder_that_have_no_effect(
    command: Command, tiny: Path, options: tuple[object, ...], said: str
) -> None:
    one_sentence(command("build", "tiny.onnx", *options, "-o", "engine"), 2, said)
    assert files(tiny) == set()


def test_a_plan_with_what_none_of_its_backends_takes(command: Command, plan: Path) -> None:
    text = plan.read_text()
    plan.write_text(f"{text}\n[build]\ndla_core = 0\n")
    said = "[build] dla_core: has no effect on an engine for onnxruntime, it is for tensorrt and tensorrt_rtx; drop it"
    one_sentence(command("run", plan), 2, said)
    plan.write_text(f"{text}\n[build]\nworkspace_mib = 64\n")
    assert command("build", plan).status == 0


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("taken", "taken: is a folder; give the path of a file with -o"),
        ("data.npz/x", "data.npz/x: cannot be written (File exists); give another path with -o"),
        ("/proc/trtforge/x", "/proc/trtforge/x: cannot be written (No such file or directory); give another path"),
        ("/dev/null", "/dev/null: is not a plain file, and would be replaced by one; give the path of a file with -o"),
    ],
)
@pytest.mark.parametrize("verb", ["export", "build", "infer", "validate", "benchmark", "cast", "quantize"])
def test_where_nothing_can_be_written(command: Command, tiny: Path, verb: str, target: str, said: str) -> None:
    Path("taken").mkdir()
    given = {"validate": ["tiny.onnx", "tiny.onnx"]}.get(verb, ["tiny.onnx"])
    if verb not in ("export", "build"):
        given += ["--data", "data.npz"]
    one_sentence(command(verb, *given, "-o", target), 2, said)
    assert files(tiny) == {"taken"}
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("data.npz", "data.npz: is a file; give the path of a folder with -o"),
        ("taken", "taken: is a folder with other files in it; give a new path with -o"),
        (".", ".: has no name of its own; give a new path with -o"),
        ("taken/..", "taken/..: has no name of its own; give a new path with -o"),
        ("/dev/null", "/dev/null: is a file; give the path of a folder with -o"),
        ("data.npz/x", "data.npz/x: cannot be written (File exists); give another path with -o"),
    ],
)
def test_where_no_ranges_can_be_written(command: Command, tiny: Path, target: str, said: str) -> None:
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("mine")
    one_sentence(command("calibrate", "tiny.onnx", "--data", "data.npz", "-o", target), 2, said)
    assert files(tiny) == {"taken"}
    assert files(tiny / "taken") == {"mine.txt"}


def test_a_backend_that_is_not_installed(command: Command, tiny: Path) -> None:
    reason = backend("tensorrt").why_not_build()
    if not reason:
        pytest.skip("tensorrt builds here")
    one_sentence(command("build", "tiny.onnx", "--backend", "tensorrt", *PROFILE, "-o", "x.engine"), 3, reason)
    assert files(tiny) == set()
