"""A plan for LiteRT from a SavedModel to verdicts: one float file, its ranges, each precision made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engines.backends import tensorflow
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.results import Results
from pipeline.store import Store
from tests.made import QUICK_PROTOCOL

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(tensorflow.why_not_run()), reason="needs TensorFlow")]

PLAN = """
[model]
source = "saved"
[data]
calibration = { path = "data.npz", inputs = { row = "calibration" } }
evaluation = { path = "data.npz", inputs = { row = "evaluation" } }
[variants]
precisions = ["fp32", "fp16", "int16x8", "dynamic", "int8"]
backends = ["litert"]
[lint]
allow = ["range"]
[convert]
batch_size = 4
[tolerate]
num_draws = 3
"""


def save_network(folder: Path) -> None:
    tf, random = tensorflow._import(), np.random.default_rng(0)
    net = tf.Module()
    net.first, net.second = (tf.Variable(random.normal(size=shape).astype(np.float32)) for shape in ((8, 16), (16, 3)))
    serve = tf.function(
        lambda row: {"scores": tf.nn.relu(row @ net.first) @ net.second},
        input_signature=[tf.TensorSpec([None, 8], tf.float32, name="row")],
    )
    tf.saved_model.save(net, str(folder), {"serving_default": serve})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("litert")
    save_network(folder / "saved")
    random = np.random.default_rng(3)
    calibration, evaluation = random.normal(size=(2, 66, 8)).astype(np.float32)
    np.savez(folder / "data.npz", calibration=calibration, evaluation=evaluation)
    (folder / "plan.toml").write_text(PLAN + QUICK_PROTOCOL)
    return run(read_plan(folder / "plan.toml"), Store(folder / "store"), "validate")


def test_each_precision_is_judged_beside_the_onnx_model(made: Results) -> None:
    verdicts = {variant.precision.name: verdict.read() for variant, verdict in made.verdicts.items()}
    assert list(verdicts) == ["fp32", "fp16", "int16x8", "dynamic", "int8"]
    assert [verdict["failures"] for verdict in verdicts.values()] == [[]] * 5
    cosines = {name: verdict["comparison"]["scores"]["cosine_min"] for name, verdict in verdicts.items()}
    assert cosines["fp32"] > 0.999999
    assert 0.99 < cosines["int8"] < cosines["int16x8"] < 1


def test_what_is_in_integers_and_whose_kernels_run_is_in_the_records(made: Results) -> None:
    records = {
        variant.precision.name: json.loads(engine.beside("record.json").read_text())
        for variant, engine in made.engines.items()
    }
    assert {name: record["num_int8"] for name, record in records.items()} == {
        "fp32": 0, "fp16": 0, "int16x8": 2, "dynamic": 2, "int8": 2,
    }  # fmt: skip
    assert {record["versions"]["kernels"] for record in records.values()} <= {"XNNPACK", "built-in"}
    assert records["int8"]["inputs"] == [{"name": "row", "dtype": "float32", "shape": [4, 8]}]


def test_ranges_are_of_the_float_file(made: Results) -> None:
    assert made.converted is not None
    form = made.networks["trained"].forms["tflite"]
    assert form.fp32 == made.converted
    assert form.ranges is not None
    assert made.ranges is None, "no variant is made of the ONNX model"
    record = json.loads((form.ranges.path / "ranges.json").read_text())
    assert record["model_digest"] == made.converted.digest()
    assert "row" in record["tensors"]


def test_each_precision_is_held_to_what_was_derived_for_it(made: Results) -> None:
    assert [variant.precision.name for variant in made.tolerances] == ["fp32", "fp16", "int16x8", "dynamic", "int8"]
    means = {v.precision.name: t.read()["outputs"]["scores"]["mean_db"] for v, t in made.tolerances.items()}
    assert means["fp32"] > means["fp16"] > means["int16x8"] > means["int8"]
    assert means["fp16"] > means["dynamic"]
    assert {tolerances.read()["target"] for tolerances in made.tolerances.values()} == {"none", "tflite"}
    for variant, verdict in made.verdicts.items():
        assert verdict.read()["derived"] == made.tolerances[variant].read()["outputs"]
    assert not [note for note in made.notes if note.startswith("Tolerances are not derived")]


def test_a_calibration_on_shrunk_data_is_caught_with_its_operator(made: Results, tmp_path: Path) -> None:
    """It clips all that its samples were too small for, and the verdict says what was derived."""
    with np.load(made.evaluation.source.path) as stored:
        np.savez(tmp_path / "data.npz", calibration=stored["calibration"] * 0.2, evaluation=stored["evaluation"])
    folder = Path(made.evaluation.source.path).parent
    text = (folder / "plan.toml").read_text().replace('"saved"', f'"{folder}/saved"')
    text = text.replace('["fp32", "fp16", "int16x8", "dynamic", "int8"]', '["int8"]').replace(
        '["range"]', '["range", "overlap"]'
    )
    (tmp_path / "plan.toml").write_text(text)
    wrong = run(read_plan(tmp_path / "plan.toml"), Store(folder / "store"), "validate")
    (verdict,) = (each.read() for each in wrong.verdicts.values())
    assert any("below the " in failure and "dB that was derived" in failure for failure in verdict["failures"])
    assert verdict["suspects"], "LiteRT's own tensors were compared"


def test_a_report_shows_the_ranges_that_the_variants_have(made: Results) -> None:
    assert made.reported_ranges == made.networks["trained"].forms["tflite"].ranges
