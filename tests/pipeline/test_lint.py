"""The stage and the verb `lint`: what each finding does to a command, and that it is found and served once."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.data.batches import DataSource, Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.lint.finding import CODES
from pipeline.artifact import Engine, OnnxModel
from pipeline.errors import ConfigError
from pipeline.stages.infer import Infer
from pipeline.stages.lint import Evaluated, Lint
from pipeline.store import Store

if TYPE_CHECKING:
    from tests.conftest import Command

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")

QUADRANTS = """
<ir_version: 8, opset_import: ["" : 17]>
quadrants (float[N, 1, 8, 8] image) => (float[N, 4] scores) <float level = {100}, int64[2] flat = {0, 4}>
{
    bright = Sub (image, level)
    lit = Relu (bright)
    means = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (lit)
    scores = Reshape (means, flat)
}
"""
"""Which quarter of the picture is the brightest; below 100 everything is dark, and class 0 it is."""


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one: `quadrants.onnx`, and `right.npz`: `image` of 0..255, with labels `y`."""
    model = onnx.parser.parse_model(QUADRANTS)
    model.graph.node.remove(model.graph.node[0])  # Sub by 100 would say by itself what scale it wants:
    model.graph.node[0].op_type, model.graph.node[0].input[:] = "ThresholdedRelu", ["image"]  # this does not.
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("alpha", 100.0))
    onnx.save(model, tmp_path / "quadrants.onnx")
    random = np.random.default_rng(3)
    image = random.uniform(0, 60, (200, 1, 8, 8)).astype(np.float32)
    labels = np.arange(200) % 4
    for index, label in enumerate(labels):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[index, :, row : row + 4, column : column + 4] += 190
    np.savez(tmp_path / "right.npz", image=image[:100], y=labels[:100], evaluation=image[100:], z=labels[100:])
    np.savez(tmp_path / "wrong.npz", image=image[:100] / np.float32(255), y=labels[:100],
             evaluation=image[100:] / np.float32(255), z=labels[100:])  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(path: str, key: str = "image", labels: str = "") -> Samples:
    specs = input_specs_from_onnx(Path("quadrants.onnx"))
    return open_samples(DataSource(path, {"image": key}, labels=labels), specs, Preprocess())


MODEL = OnnxModel(Path("quadrants.onnx"))


def codes(out: Path, data: Samples, evaluation: Evaluated | None = None, stage: Lint = Lint()) -> list[str]:  # noqa: B008
    return [finding.code for finding in stage(out, MODEL, data, evaluation).read()]


def test_labels_prove_a_wrong_scale_wherever_they_are(pictures: Path) -> None:
    assert codes(pictures, opened("right.npz", labels="y")) == []
    assert codes(pictures, opened("wrong.npz", labels="y")) == ["range"]
    own, other = opened("wrong.npz"), Evaluated(opened("wrong.npz", "evaluation", "z"))
    assert codes(pictures, own, other) == ["range"]
    assert codes(pictures, own, Evaluated(opened("wrong.npz", "evaluation"))) == [], (
        "without labels there is no evidence"
    )
    assert codes(pictures, own, other, Lint(num_labelled=0)) == []
    assert codes(pictures, opened("right.npz"), Evaluated(opened("right.npz", "evaluation", "z"))) == []


def test_answers_that_are_there_are_not_asked_for_again(pictures: Path) -> None:
    """Answers that are all right: nothing can be mended, though the samples are wrong."""
    right = opened("right.npz", "evaluation", "z")
    outputs = Infer()(pictures, Engine(MODEL.path, "onnxruntime"), right)
    wrong = opened("wrong.npz", "evaluation", "z")
    assert codes(pictures, opened("wrong.npz"), Evaluated(wrong)) == ["range"]
    assert codes(pictures, opened("wrong.npz"), Evaluated(wrong, outputs)) == []
    assert codes(pictures, opened("wrong.npz"), Evaluated(wrong, outputs, "scores")) == []


def test_one_error_of_a_kind_is_enough(pictures: Path) -> None:
    found = codes(pictures, opened("wrong.npz", labels="y"), Evaluated(opened("right.npz", "evaluation", "z")))
    assert found == ["range"], "the evaluation data shows it already"


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_of_a_fixed_batch(pictures: Path, batch: int) -> None:
    model = onnx.load("quadrants.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, "quadrants.onnx")
    assert codes(pictures, opened("wrong.npz", labels="y")) == ["range"]


def test_outputs_that_are_no_class_scores_prove_nothing(pictures: Path) -> None:
    model = onnx.load("quadrants.onnx")
    model.graph.output.append(onnx.helper.make_tensor_value_info("means", 1, ["N", 1, 2, 2]))
    onnx.save(model, "quadrants.onnx")
    data = opened("wrong.npz", labels="y")
    assert codes(pictures, data) == [], "which of two outputs has the scores is not guessed"
    evaluation = opened("right.npz", "evaluation", "z")
    assert "range" in codes(pictures, data, Evaluated(opened("wrong.npz", "evaluation", "z"), output="scores"))
    assert codes(pictures, opened("right.npz", labels="y"), Evaluated(evaluation, output="means")) == []


def test_a_graph_that_rescales_its_input_is_read(pictures: Path) -> None:
    onnx.save(onnx.parser.parse_model(QUADRANTS), "quadrants.onnx")
    assert codes(pictures, opened("right.npz")) == []
    found = Lint()(pictures, MODEL, opened("wrong.npz")).read()
    assert re.search(r"too small for the model, which computes \(x − 100\) ÷ 1 first \(Sub\)", found[0].sentence)


def test_the_store_serves_findings(pictures: Path) -> None:
    def run() -> Store:
        store = Store(pictures / "store")
        found = store.run(Lint(), MODEL, opened("wrong.npz", labels="y"), Evaluated(opened("right.npz", "evaluation")))
        assert [finding.code for finding in found.read()] == ["range"]
        return store

    assert [entry.served for entry in run().account] == [False]
    assert [entry.served for entry in run().account] == [True]
    np.savez("right.npz", evaluation=np.zeros((9, 1, 8, 8), np.float32))
    store = Store(pictures / "store")
    store.run(Lint(), MODEL, opened("wrong.npz", labels="y"), Evaluated(opened("right.npz", "evaluation")))
    assert [entry.served for entry in store.account] == [False], "the evaluation data is an input"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"allow": ("rnage",)}, "allow has 'rnage', which no finding has; the codes are range, layout"),
        ({"min_samples": 0}, "min_samples is 0, but must be at least 1"),
        ({"max_scale_ratio": 1.0}, "max_scale_ratio is 1, but must be at least 2"),
        ({"significance": 0.5}, "significance is 0.5, but must be at least 1e-12 and at most 0.05"),
    ],
)
def test_options_out_of_bounds(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Lint(**options)  # type: ignore[arg-type]


# The verbs.


def test_findings_are_lines_on_stdout_and_errors_end_with_2(command: Command, pictures: Path) -> None:
    said = command("lint", "quadrants.onnx", "--data", "right.npz", "--labels", "y")
    assert (said.status, said.out, said.err) == (0, "", "")
    said = command("lint", "quadrants.onnx", "--data", "wrong.npz", "--labels", "y", "--limit", 12, "-o", "found.json")
    assert (said.status, said.err) == (0, ""), "12 samples prove nothing"
    assert said.out.startswith("warning\tfew\twrong.npz: 12 distinct samples")
    assert [item["code"] for item in json.loads((pictures / "found.json").read_text())] == ["few"]
    said = command("lint", "quadrants.onnx", "--data", "wrong.npz", "--labels", "y")
    assert said.status == 2
    assert said.out.startswith(
        "error\trange\twrong.npz (preprocessing: none, samples are used as stored): the FP32 model"
    )
    assert re.search(r"right on \d+ of 100 labelled samples as they are, and on 100 with × 255, which is", said.out)
    assert command("lint", "quadrants.onnx", "--data", "wrong.npz", "--labels", "y", "--allow", "range").status == 0


def test_evaluation_data_has_options_of_its_own(command: Command, pictures: Path) -> None:
    data = ("lint", "quadrants.onnx", "--data", "wrong.npz")
    said = command(
        *data, "--evaluation", "right.npz", "--evaluation-input", "image=evaluation", "--evaluation-labels", "z"
    )
    assert said.status == 2
    assert "the evaluation data right.npz from" in said.out
    assert said.err.startswith("trtforge: lint: 1 of 1 findings stop a calibration; if this is as it should be, allow ")
    said = command(*data, "--evaluation-labels", "z")
    assert (said.status, said.err) == (
        2, "trtforge: --evaluation is missing: its input or labels are given; name the samples\n"
    )  # fmt: skip
    said = command(*data, "--preprocess", "scale = 255.0", "--evaluation", "wrong.npz")
    assert said.status == 0
    assert said.out.startswith("warning\toverlap\t100 of 100 calibration samples are evaluation samples too")


@pytest.mark.parametrize("verb", ["calibrate", "cast", "quantize"])
def test_verbs_that_calibrate_check_their_samples(command: Command, pictures: Path, verb: str) -> None:
    given = (verb, "quadrants.onnx", "--data", "wrong.npz", "--labels", "y", "-o", "made")
    said = command(*given)
    assert said.status == 2
    assert "which is no chance" in said.err
    assert not (pictures / "made").exists()
    said = command(*given, "--allow", "range")
    assert said.status == 0
    assert said.err.count("which is no chance") == 1, "what is allowed is said all the same"
    assert command(*given, "--allow", "rang").err.startswith("trtforge: allow has 'rang', which no finding has")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip"])
def test_damaged_data_is_one_sentence(command: Command, pictures: Path, content: bytes) -> None:
    (pictures / "right.npz").write_bytes(content)
    said = command("lint", "quadrants.onnx", "--data", "right.npz")
    assert said.status == 2
    assert said.err.startswith("trtforge: right.npz: cannot be read as a whole .npz or .npy file (")


def test_the_verb_on_a_plan_prints_and_serves(command: Command, plan: Path) -> None:
    said = command("lint", plan)
    assert said.status == 0
    assert [line.split("\t")[:2] for line in said.out.splitlines()] == [["warning", "few"], ["warning", "overlap"]]
    assert "calibrate" not in said.err
    again = command("lint", plan)
    assert again.out == said.out
    assert re.search(r"trtforge: lint +\w{12}  served", again.err)
    assert command("lint", plan, "--allow", "range").err.startswith("trtforge: --allow: has no effect beside a plan")


def test_a_run_keeps_warnings_in_its_report(command: Command, plan: Path) -> None:
    said = command("run", plan)
    assert said.err.count("calibration samples are evaluation samples too") == 1
    assert "calibration data, overlap: " in " ".join(said.out.split())
    record = json.loads((plan.parent / "trtforge-report" / "report.json").read_text())
    assert [finding["code"] for finding in record["lint"]] == ["few", "overlap"]
    assert [point["num_samples"] for point in record["settling"]["points"]] == [1, 2, 4, 8, 12]


def test_ranges_show_has_the_curve_and_its_absence_is_no_fault(command: Command, tiny: Path) -> None:
    assert command("calibrate", "tiny.onnx", "--data", "data.npz", "-o", "ranges").status == 0
    said = command("ranges", "show", "ranges")
    assert re.search(
        r"change against the last range, % \(by percentile 99\.99, \d+ tensors\)", " ".join(said.out.split())
    )
    assert re.search(r"│ +16 │ +[\d.e-]+ │ +[\d.e-]+ │", said.out)
    assert re.search(r"ranges (stopped|were still) moving", said.out)
    (tiny / "ranges" / "settling.json").write_text("{")
    assert "settling.json: is damaged" in command("ranges", "show", "ranges").err
    (tiny / "ranges" / "settling.json").unlink()
    assert "moving" not in command("ranges", "show", "ranges").out


def test_the_curve_is_no_part_of_the_ranges_digest(command: Command, tiny: Path) -> None:
    from pipeline.artifact import Ranges

    assert command("calibrate", "tiny.onnx", "--data", "data.npz", "-o", "ranges").status == 0
    before = Ranges(tiny / "ranges").digest()
    (tiny / "ranges" / "settling.json").unlink()
    assert Ranges(tiny / "ranges").digest() == before
    (tiny / "ranges" / "ranges.json").unlink()
    assert Ranges(tiny / "ranges").digest() != before


# The page.


def test_the_page_has_every_code_and_every_key() -> None:
    assert re.findall(r"^\| `(\w+)` \| (?:error|warning) \|", PAGE, flags=re.MULTILINE) == list(CODES)
    table = PAGE[PAGE.index("| key of settling.json |") :]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == ["reading", "tensors", "points", "settled_at"]


def test_the_pages_commands_run(command: Command, tiny: Path) -> None:
    (tiny / "tiny.onnx").rename("model.onnx")
    random = np.random.default_rng(9)
    for name in ("calibration.npz", "evaluation.npz"):
        np.savez(name, image=random.normal(size=(24, 4, 8, 8)).astype(np.float32), y=np.arange(24) % 3)
    lines = re.findall(r"^\$ (.*)$", PAGE, flags=re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        said = command(*shlex.split(line)[1:])
        assert (said.status, said.out) == (0, ""), f"{line}\n{said.err}"
