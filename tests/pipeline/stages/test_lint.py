"""The stage `lint`: what it finds in samples, and that it is found once and served."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.data.batches import DataSource, Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from pipeline.artifact import Engine, OnnxModel
from pipeline.errors import ConfigError
from pipeline.stages.infer import Infer
from pipeline.stages.lint import Evaluated, Lint
from pipeline.store import Store
from tests.pipeline.quadrants import QUADRANTS


def opened(path: str, key: str = "image", labels: str = "") -> Samples:
    specs = input_specs_from_onnx(Path("quadrants.onnx"))
    return open_samples(DataSource(path, {"image": key}, labels=labels), specs, Preprocess())


MODEL = OnnxModel(Path("quadrants.onnx"))


def codes(out: Path, data: Samples, evaluation: Evaluated | None = None, stage: Lint = Lint()) -> list[str]:  # noqa: B008
    """Of errors and warnings."""
    return [finding.code for finding in stage(out, MODEL, data, evaluation).read() if finding.severity != "note"]


def notes(out: Path, data: Samples, evaluation: Evaluated | None = None) -> list[str]:
    return [f.sentence for f in Lint()(out, MODEL, data, evaluation).read() if f.severity == "note"]


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


def test_what_was_checked_is_said_of_both_sets(pictures: Path) -> None:
    data, evaluation = opened("right.npz", labels="y"), Evaluated(opened("right.npz", "evaluation", "z"))
    checked = "64 labelled samples, scale, layout: as trained (the FP32 model is right on 64; {} runs of it)"
    assert notes(pictures, data) == ["right.npz: " + checked.format(64)]
    assert notes(pictures, data, evaluation) == ["right.npz: " + checked.format(64)]
    outputs = Infer()(pictures, Engine(MODEL.path, "onnxruntime"), evaluation.samples)
    known = Evaluated(evaluation.samples, outputs)
    assert notes(pictures, data, known) == ["right.npz: " + checked.format(32)]
    assert notes(pictures, opened("right.npz"), known) == ["right.npz: " + checked.format(0)]
    assert notes(pictures, opened("right.npz")) == []
    assert notes(pictures, opened("wrong.npz", labels="y"), Evaluated(opened("wrong.npz", "evaluation", "z"))) == []


def test_sets_on_two_scales_are_looked_at_one_by_one(pictures: Path) -> None:
    """Calibration data of 0..1 is wrong, evaluation data of 0..255 right; neither falls below 0."""
    found = Lint(max_scale_ratio=1000.0)(
        pictures, MODEL, opened("wrong.npz", labels="y"), Evaluated(opened("right.npz", "evaluation", "z"))
    ).read()
    assert [(f.severity, f.code) for f in found] == [("error", "range"), ("note", "labels")]
    assert found[0].sentence.startswith("wrong.npz (preprocessing")
    assert found[1].sentence.startswith("right.npz: 64 labelled samples, ")


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


def test_samples_that_train_are_asked_the_same(pictures: Path) -> None:
    """Samples that a network is trained on must be no evaluation samples, and be of the model's scale."""
    data, evaluation = opened("right.npz", labels="y"), Evaluated(opened("right.npz", "evaluation", "z"))
    overlapping = Lint()(pictures, MODEL, data, evaluation, opened("right.npz", "evaluation", "z")).read()
    assert [(f.severity, f.code) for f in overlapping] == [
        ("warning", "overlap"),
        ("note", "labels"),
        ("note", "labels"),
    ]
    num = opened("right.npz", "evaluation").num_samples
    assert overlapping[0].sentence == (
        f"{num} of {num} tuning samples are evaluation samples too: the accuracy of the networks that are trained on "
        "them is overestimated; keep them apart"
    )
    assert overlapping[-1].sentence.startswith("right.npz ([data.tuning]): 64 labelled samples, ")
    wrong = Lint()(pictures, MODEL, data, evaluation, opened("wrong.npz", labels="y")).read()
    assert [f.code for f in wrong if f.severity == "error"] == ["range"]
    assert wrong[0].sentence.startswith("wrong.npz ([data.tuning]): input 'image' has values from ")
    same = Lint()(pictures, MODEL, data, evaluation, opened("right.npz", labels="y")).read()
    assert [f.code for f in same] == ["labels", "labels"]


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
