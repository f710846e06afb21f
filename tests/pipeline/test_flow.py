"""The flow: what each verb makes, what stops a run before it costs anything, and runs that are killed or race."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from PIL import Image

from calibration.ranges.ranges_file import ranges_from_folder
from engines import backend
from engines.backends import reference
from pipeline.engine_runner import SIMULATION
from pipeline.errors import CheckFailed, ConfigError, DataError, Unavailable
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.results import Results
from pipeline.store import Store
from tests.pipeline.plan_folder import PLAN, change


def made_by(folder: Path, until: str, store: Store | None = None) -> Results:
    return run(read_plan(folder / "plan.toml"), store or Store(folder / "store"), until)


def stages_of(store: Store) -> list[str]:
    return [entry.stage for entry in store.account]


# Each verb.


CHECKED = ["export", "infer", "infer", "validate"]
"""Export, the FP32 model's answers, the network's own answers, and the comparison of the two."""


def test_each_verb_stops_where_it_says(folder: Path) -> None:
    made: dict[str, list[str]] = {}
    verbs = ("export", "lint", "calibrate", "cast", "quantize", "tolerate", "build", "infer", "validate", "benchmark")
    for verb in verbs:
        store = Store(folder / "store")
        found = made_by(folder, verb, store)
        made[verb] = stages_of(store)
        assert found.source_verdict is not None
        assert found.source_verdict.read()["metric"] == 1.0, "the labels are the network's own answers"
        assert [v.name for v in found.models] == {
            "export": [],
            "lint": [],
            "calibrate": [],
            "cast": ["fp16@onnxruntime"],
            "quantize": ["int8@onnxruntime"],
        }.get(verb, ["fp32@onnxruntime", "fp16@onnxruntime", "int8@onnxruntime"])
        assert (found.timings is not None) is (verb == "benchmark")
    assert made["export"] == CHECKED
    assert made["lint"] == [*CHECKED, "lint"]
    assert made["calibrate"] == [*CHECKED, "lint", "calibrate"]
    assert made["cast"] == [*CHECKED, "lint", "calibrate", "cast"]
    assert made["quantize"] == [*CHECKED, "lint", "calibrate", "quantize"]
    assert made["build"] == [*CHECKED, "lint", "calibrate", "cast", "quantize", "build", "build", "build"]
    assert made["infer"] == [*made["build"], "infer", "infer", "infer"]
    models, engines = made["calibrate"] + ["cast", "quantize"], ["build"] * 3 + ["infer"] * 3
    assert made["tolerate"] == models, "24 evaluation samples are too few to derive from"
    assert found.notes[0].startswith(
        "Tolerances are not derived: 24 evaluation samples are too few to determine ranges"
    )
    assert made["validate"] == [*made["tolerate"], *engines, "validate", "validate", "validate"]
    assert made["benchmark"] == [*made["validate"], "benchmark"]


def test_what_a_backend_does_not_read_is_refused_before_anything_is_run(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT 8 does of opset 18, which nothing else here can build for."""
    models: list[Path] = []

    def refuse_model(model: Path) -> None:
        models.append(model)
        raise Unavailable(f"{model}: is in opset 18, tensorrt 8.6.1 reads up to 17; write it in opset 17")

    monkeypatch.setattr(reference, "refuse_model", refuse_model, raising=False)
    change(warm, 'backends = ["onnxruntime"]', 'backends = ["onnxruntime", "reference"]')
    store = Store(warm / "store")
    with pytest.raises(Unavailable, match="is in opset 18"):
        made_by(warm, "build", store)
    assert stages_of(store) == ["export"]
    assert [model.name for model in models] == ["model.onnx"]
    made_by(warm, "calibrate", store)


def test_a_network_that_is_int8_already_is_built_as_it_is(warm: Path) -> None:
    int8 = made_by(warm, "quantize").models
    (model,) = [model for variant, model in int8.items() if variant.precision.is_integer]
    (warm / "net.onnx").write_bytes(model.path.read_bytes())
    store = Store(warm / "other")
    again = made_by(warm, "validate", store)
    (built,) = [model for variant, model in again.models.items() if variant.precision.is_integer]
    assert onnx.load(built.path).graph.node == onnx.load(model.path).graph.node
    assert all(verdict.read()["passed"] for verdict in again.verdicts.values())


def test_the_store_may_serve_all_but_the_benchmark(warm: Path) -> None:
    again = Store(warm / "store")
    made_by(warm, "benchmark", again)
    assert {entry.stage for entry in again.account if not entry.served} == {"benchmark"}


# What stops a run, and when.


def test_an_export_that_answers_otherwise_stops_everything(folder: Path) -> None:
    """Folding changes the last bits: with no tolerance at all that is a failure."""
    (folder / "plan.toml").write_text(PLAN + "\n[validate.fp32]\natol = 0.0\n")
    store = Store(folder / "store")
    with pytest.raises(
        CheckFailed,
        match=r"net\.onnx: the exported ONNX model does not compute what the network "
        r"does: ",
    ):
        made_by(folder, "benchmark", store)
    assert stages_of(store) == CHECKED, "nothing was built on it"


def test_an_onnx_source_with_colons_is_compared_under_its_new_names(folder: Path) -> None:
    model = onnx.load(folder / "net.onnx")
    model.graph.input[0].name = model.graph.node[0].input[0] = "image:0"
    onnx.save(model, folder / "net.onnx")
    found = made_by(folder, "export")
    assert found.source_verdict is not None
    assert found.source_verdict.read()["passed"]


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ('metric = "top1"', 'metric = "top2"', ConfigError, "metric 'top2': is not one of top1, top5"),
        ('backends = ["onnxruntime"]', 'backends = ["reference"]', Unavailable, "reference: is away; call it back"),
        ("[report]\n", '[report]\nfolder = "."\n', ConfigError, "a report replaces its whole folder"),
        ("[report]\n", '[report]\nfolder = "net.onnx"\n', ConfigError, r"net\.onnx exists"),
    ],
)
def test_what_is_bound_to_fail_fails_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, error: type[Exception], words: str
) -> None:
    monkeypatch.setattr(reference, "why_not_build", lambda: "reference: is away; call it back")
    change(folder, old, new)
    store = Store(folder / "store")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(error, match=words):
        made_by(folder, "benchmark", store)
    assert store.account == []
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("table", "name"),
    [("[model.inputs.imag]", "model.inputs"), ("[[model.profiles]]\n[model.profiles.imag]", "model.profiles")],
)
def test_shapes_of_an_input_that_is_not_there_are_the_plans_fault(folder: Path, table: str, name: str) -> None:
    change(folder, "[report]\n", f"{table}\nmin = [1]\nopt = [1]\nmax = [1]\n[report]\n")
    with pytest.raises(ConfigError, match=rf"\[{name}\] the model has no input 'imag'; did you mean 'image'\?"):
        made_by(folder, "build")


def test_a_dynamic_input_without_a_shape_range_is_refused_with_what_to_write(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "NEEDS_RANGES", True)
    change(warm, 'backends = ["onnxruntime"]', 'backends = ["onnxruntime", "reference"]')
    store = Store(warm / "store")
    with pytest.raises(ConfigError) as error:
        made_by(warm, "benchmark", store)
    sentence, toml = str(error.value).split("\n", maxsplit=1)
    assert "[model.inputs] has no shape range for input 'image' (?, 4, 8, 8), and reference builds" in sentence
    assert stages_of(store) == ["export"]
    made_by(warm, "calibrate")  # Makes no engine.

    change(warm, "[data]", f"{toml}\n[data]")
    assert read_plan(warm / "plan.toml").model.inputs["image"].max == (32, 4, 8, 8)
    made_by(warm, "build")
    change(warm, "[data]", "[[model.profiles]]\n[data]")
    with pytest.raises(ConfigError, match=r"\[model.profiles\[0\]\] has no shape range for input 'image'"):
        made_by(warm, "build")


def test_a_metric_is_judged_anew_when_what_it_imports_changes(warm: Path) -> None:
    (warm / "own_metric_of_test_flow.py").write_text(
        "import own_factor_of_test_flow\ndef share(outputs, labels):\n    return own_factor_of_test_flow.FACTOR\n"
    )
    (warm / "own_factor_of_test_flow.py").write_text("FACTOR = 1.0\n")
    change(warm, 'metric = "top1"', 'metric = "own_metric_of_test_flow:share"')
    made_by(warm, "validate")
    (warm / "own_factor_of_test_flow.py").write_text("FACTOR = 0.5\n")
    again = Store(warm / "store")
    made_by(warm, "validate", again)
    assert {entry.stage for entry in again.account if not entry.served} == {"validate"}


def test_a_batch_that_is_larger_than_the_data_is_refused_before_calibration(folder: Path) -> None:
    change(folder, "[benchmark.protocol]", "[benchmark]\nbatch_sizes = [1, 25]\n[benchmark.protocol]")
    store = Store(folder / "store")
    with pytest.raises(ConfigError, match="batch_sizes has 25, but there are 24 samples to time with"):
        made_by(folder, "benchmark", store)
    assert stages_of(store) == ["export"]


def test_int8_for_a_backend_that_takes_none_is_refused(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PLACEMENT", "none")
    change(warm, 'backends = ["onnxruntime"]', 'backends = ["onnxruntime", "reference"]')
    with pytest.raises(ConfigError, match=r"int8@reference: the backend takes no INT8 model; take int8 out of"):
        made_by(warm, "quantize")
    assert [v.name for v in made_by(warm, "cast").models] == ["fp16@onnxruntime", "fp16@reference"]


@pytest.mark.parametrize(
    ("precision", "backend", "said"),
    [
        (
            "dynamic",
            "tensorrt",
            r"dynamic@tensorrt: the backend takes no dynamic model; .*, or take onnxruntime or litert, which have it",
        ),
        ("int16x8", "reference", r"int16x8@reference: the backend takes no int16x8 model; .*, or take litert, which"),
        (
            "int8",
            "litert",
            r"net\.onnx: a \.tflite file is made of a SavedModel or a Keras file; what makes it of ONNX",
        ),
    ],
)
def test_what_a_backend_cannot_do_is_refused_before_anything_is_made(
    folder: Path, precision: str, backend: str, said: str
) -> None:
    if backend == "litert":
        pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    change(folder, 'precisions = ["fp32", "fp16", "int8"]', f'precisions = ["fp32", "{precision}"]')
    change(folder, 'backends = ["onnxruntime"]', f'backends = ["{backend}"]')
    store = Store(folder / "store")
    with pytest.raises(ConfigError, match=said):
        made_by(folder, "build", store)
    assert stages_of(store) == []


def test_dynamic_needs_no_calibration(folder: Path) -> None:
    change(folder, 'precisions = ["fp32", "fp16", "int8"]', 'precisions = ["fp32", "dynamic"]')
    store = Store(folder / "store")
    made = made_by(folder, "validate", store)
    assert "calibrate" not in stages_of(store)
    assert [(variant.name, verdict.read()["passed"]) for variant, verdict in made.verdicts.items()] == [
        ("fp32@onnxruntime", True),
        ("dynamic@onnxruntime", True),
    ]
    change(folder, 'precisions = ["fp32", "dynamic"]', 'precisions = ["dynamic", "int8"]')
    assert [v.name for v in made_by(folder, "quantize", store).models] == ["dynamic@onnxruntime", "int8@onnxruntime"]
    assert stages_of(store).count("calibrate") == 1


def test_overrides_by_the_names_of_onnx_are_refused_where_no_backend_takes_onnx(folder: Path) -> None:
    override = '[[quantize.override]]\nnodes = "x"\nprecision = "fp32"\n[variants]'
    change(folder, "[variants]", override)
    change(folder, 'backends = ["onnxruntime"]', 'backends = ["litert"]')
    with pytest.raises(
        ConfigError, match=r"\[\[quantize\.override\]\] goes by the nodes of an ONNX model, and no backend"
    ):
        made_by(folder, "build")


def test_samples_that_serve_twice_are_noted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with np.load(folder / "data.npz") as stored:
        arrays = dict(stored)
    arrays["x_evaluation"][:3] = arrays["x_calibration"][:3]
    np.savez(folder / "data.npz", **arrays)
    change(folder, "max_metric_drop = 0.3", "max_metric_drop = 1.0")
    with caplog.at_level(logging.WARNING):
        found = made_by(folder, "calibrate")
    said = (
        "3 of 12 calibration samples are evaluation samples too: the accuracy of INT8 is overestimated; keep them apart"
    )
    assert found.findings is not None
    assert said in [finding.sentence for finding in found.findings.read() if finding.code == "overlap"]
    assert caplog.text.count(said) == 1
    assert found.notes == []


def test_what_the_lint_proves_stops_before_calibration_unless_it_is_allowed(folder: Path) -> None:
    """All calibration samples 1000 times as large as those that the network is judged on."""
    with np.load(folder / "data.npz") as stored:
        arrays = dict(stored)
    arrays["x_calibration"] *= 1000
    np.savez(folder / "data.npz", **arrays)
    store = Store(folder / "store")
    with pytest.raises(DataError, match=r'input \'image\' has values from .*; .* allow "range" \(\[lint\] allow'):
        made_by(folder, "benchmark", store)
    assert stages_of(store) == [*CHECKED, "lint"]
    with pytest.raises(DataError, match="both must be on the model's scale"):
        made_by(folder, "calibrate")
    (folder / "plan.toml").write_text(PLAN + '\n[lint]\nallow = ["range"]\n')
    assert made_by(folder, "calibrate").ranges is not None


def test_samples_too_few_to_settle_are_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made_by(folder, "calibrate")
    assert caplog.text.count("12 samples are too few to tell whether ranges converged; add samples") == 1


def test_nan_in_a_sample_is_named_with_file_and_index(folder: Path) -> None:
    with np.load(folder / "data.npz") as stored:
        arrays = dict(stored)
    arrays["x_calibration"][7, 1, 2, 3] = np.nan
    np.savez(folder / "data.npz", **arrays)
    store = Store(folder / "store")
    with pytest.raises(DataError, match=r"data\.npz: input 'image' has NaN in sample 7, numbers are expected"):
        made_by(folder, "calibrate", store)
    assert "calibrate" not in stages_of(store)


# Backends that build here and run elsewhere.


def test_what_cannot_run_here_is_simulated_and_not_timed(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "why_not_run", lambda: "reference: no such device here")
    change(warm, 'backends = ["onnxruntime"]', 'backends = ["onnxruntime", "reference"]')
    change(warm, 'precisions = ["fp32", "fp16", "int8"]', 'precisions = ["fp32", "int8"]')
    found = made_by(warm, "benchmark")
    away = {variant.name for variant in found.not_timed}
    assert away == {"fp32@reference", "int8@reference"}
    assert set(found.not_timed.values()) == {"reference: no such device here"}
    assert found.timings is not None
    timed = {row["name"] for row in found.timings.read()["timings"]}
    assert timed == {"fp32@onnxruntime", "int8@onnxruntime"}
    for variant, outputs in found.outputs.items():
        by_simulation = variant.name == "int8@reference"
        assert (SIMULATION in outputs.path.read_text()) is by_simulation
        assert found.verdicts[variant].read()["passed"]


def test_fp32_that_runs_as_the_reference_does_is_not_computed_again(warm: Path) -> None:
    found = made_by(warm, "infer")
    assert found.reference is not None
    same = {variant.name for variant, outputs in found.outputs.items() if outputs.path == found.reference.path}
    assert same == {"fp32@onnxruntime"}


@pytest.mark.skipif(
    bool(backend("tensorrt_rtx").why_not_build()), reason=backend("tensorrt_rtx").why_not_build() or "it is there"
)
def test_tensorrt_rtx_builds_for_gpus_that_are_elsewhere(warm: Path) -> None:
    reason = backend("tensorrt_rtx").why_not_run()
    if not reason:
        pytest.skip("this machine runs what it builds")
    change(warm, 'backends = ["onnxruntime"]', 'backends = ["tensorrt_rtx"]')
    change(warm, "[data]", "[model.inputs.image]\nmin = [1, 4, 8, 8]\nopt = [4, 4, 8, 8]\nmax = [8, 4, 8, 8]\n\n[data]")
    change(warm, "[calibrate]", '[build]\ncompute_capabilities = ["8.6"]\n\n[calibrate]')
    found = made_by(warm, "benchmark")
    assert found.timings is None
    assert set(found.not_timed.values()) == {reason}
    assert all(engine.path.name == "model.rtx.plan" for engine in found.engines.values())
    assert all(verdict.read()["passed"] for verdict in found.verdicts.values())


@pytest.mark.skipif(
    bool(backend("tensorrt_rtx").why_not_build()), reason=backend("tensorrt_rtx").why_not_build() or "it is there"
)
def test_int8_with_fp16_for_the_rest_is_built_and_simulated(warm: Path) -> None:
    change(warm, 'backends = ["onnxruntime"]', 'backends = ["onnxruntime", "tensorrt_rtx"]')
    change(warm, 'precisions = ["fp32", "fp16", "int8"]', 'precisions = ["int8"]')
    change(warm, "[data]", "[model.inputs.image]\nmin = [1, 4, 8, 8]\nopt = [4, 4, 8, 8]\nmax = [8, 4, 8, 8]\n\n[data]")
    change(warm, "[calibrate]", '[quantize]\nrest = "fp16"\n\n[calibrate]')
    found = made_by(warm, "validate")
    opsets = {v.backend: onnx.load(model.path).opset_import[0].version for v, model in found.models.items()}
    assert opsets == {"onnxruntime": 17, "tensorrt_rtx": 19}, "fp16 for the rest is TensorRT's alone"
    assert all(verdict.read()["passed"] for verdict in found.verdicts.values())


# Data of every kind, through the processes of their own that stages start.


OWN = '''
import numpy as np

def batches():
    """Not to be found from anywhere but the plan's folder."""
    random = np.random.default_rng(3)
    for _ in range(3):
        yield {"image": random.normal(size=(4, 4, 8, 8)).astype(np.float32)}, np.zeros(4, np.int64)

def share_of_class_0(outputs, labels):
    return float(np.mean(outputs["scores"].argmax(axis=1) == labels))
'''


def test_data_and_metric_may_be_functions_beside_the_plan(folder: Path) -> None:
    (folder / "own_data_of_test_flow.py").write_text(OWN)
    change(folder, '{ path = "data.npz", inputs = { image = "x_calibration" } }', '"own_data_of_test_flow:batches"')
    change(folder, '{ path = "data.npz", inputs = { image = "x_evaluation" }, labels = "y_evaluation" }',
           '{ path = "own_data_of_test_flow:batches", limit = 10 }')  # fmt: skip
    change(folder, 'metric = "top1"', 'metric = "own_data_of_test_flow:share_of_class_0"')
    change(folder, "max_metric_drop = 0.3", "max_metric_drop = 1.0")
    found = made_by(folder, "validate")
    assert found.evaluation.num_samples == 10
    verdict = next(iter(found.verdicts.values())).read()
    assert 0 <= verdict["metric"] == verdict["reference_metric"] <= 1
    assert found.findings is not None
    assert [finding.sentence for finding in found.findings.read() if finding.code == "overlap"] == [
        "10 of 12 calibration samples are evaluation samples too: the accuracy of INT8 is overestimated; keep them "
        "apart"
    ]


GRAY = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 1, 8, 8] image) => (float[N, 2] scores) <float[1, 2] dense = {-1.0, 1.0}, float[2] bias = {0.5, -0.5}>
{ pooled = GlobalAveragePool (image) flat = Flatten (pooled) scores = Gemm (flat, dense, bias) }
"""
"""Whether a picture is bright."""


def test_folders_of_images_are_classes(folder: Path) -> None:
    onnx.save(onnx.parser.parse_model(GRAY), folder / "net.onnx")
    for name, low, high in (("dark", 0, 100), ("light", 156, 256)):
        for split in ("calibration", "evaluation"):
            (folder / split / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.random.default_rng(index).integers(low, high, (10, 12), dtype=np.uint8)
            split = "calibration" if index < 3 else "evaluation"
            Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    change(folder, '{ path = "data.npz", inputs = { image = "x_calibration" } }', '"calibration"')
    change(folder, '{ path = "data.npz", inputs = { image = "x_evaluation" }, labels = "y_evaluation" }',
           '{ path = "evaluation", labels = "folders" }')  # fmt: skip
    change(
        folder,
        "[variants]",
        """[data.preprocess]
resize = [8, 8]
channels = "gray"
scale = 0.00392156862745098
layout = "nchw"
dtype = "float32"

[variants]""",
    )
    found = made_by(folder, "validate")
    assert found.evaluation.num_samples == 6
    for verdict in found.verdicts.values():
        assert verdict.read()["metric"] == 1.0, "sub-folders in sorted order: dark is 0, light is 1"
    record = found.evaluation.preprocess.describe()
    assert "resize to 8×8" in record


def test_results_are_plain_files_that_others_can_read(warm: Path) -> None:
    found = made_by(warm, "build")
    for engine in found.engines.values():
        assert json.loads(engine.beside("recipe.json").read_text())["stage"] == "build"


# Exceptions by pattern.


def test_exceptions_reach_models_ranges_and_notes_and_calibration_is_served(warm: Path) -> None:
    made_by(warm, "calibrate")
    text = (warm / "plan.toml").read_text()
    text += '[[quantize.override]]\ntensors = "act*"\nrange = [0, 9]\n[[quantize.override]]\nnodes = "MatMul*"\n'
    (warm / "plan.toml").write_text(text + 'precision = "fp32"\n')
    store = Store(warm / "store")
    made = made_by(warm, "validate", store)
    assert [entry.served for entry in store.account if entry.stage == "calibrate"] == [True]
    assert made.ranges is not None
    assert ranges_from_folder(made.ranges.path).tensors["active"].bounds == (0, 9)
    (model,) = (model for variant, model in made.models.items() if variant.precision.is_integer)
    assert [note for note in model.notes() if note.startswith("[[quantize.override]]")][:2] == [
        "[[quantize.override]] tensors = 'act*': range 0 to 9: 1 ('active') tensors",
        "[[quantize.override]] nodes = 'MatMul*': fp32: 1 ('MatMul_scores') nodes",
    ]
    verdicts = [verdict.read() for verdict in made.verdicts.values()]
    assert all(verdict["passed"] for verdict in verdicts), "the scales are those of the ranges that were set"


@pytest.mark.parametrize("table", ["quantize.override", "cast.override"])
def test_an_exception_that_means_nothing_is_an_error(warm: Path, table: str) -> None:
    text = (warm / "plan.toml").read_text()
    (warm / "plan.toml").write_text(f'{text}[[{table}]]\nnodes = "MetMul"\nprecision = "fp32"\n')
    with pytest.raises(DataError, match=r"'MetMul' .*the nearest is 'MatMul'"):
        made_by(warm, "build")
