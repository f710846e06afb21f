"""Native INT8: what TensorRT's calibrator is given, and where it is refused. Its own side is in tests/engines."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.ranges.ranges_file import ranges_from_folder
from engines import backend
from engines.backends import tensorrt
from engines.contract import GivenBatches, GivenScales, ShapeRange
from engines.precision import INT8
from pipeline.artifact import OnnxModel, Ranges
from pipeline.builder.native_int8 import batches_for_calibrator, scales_for_calibrator
from pipeline.errors import ConfigError, DataError, Unavailable
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.results import Variant
from pipeline.stages.build import Build, BuildTarget
from pipeline.stages.calibrate import Calibrate
from pipeline.store import Store
from pipeline.variants import judged_engine

if TYPE_CHECKING:
    from tests.conftest import Command

TARGET = BuildTarget("tensorrt", "int8", {"image": ShapeRange((1, 4, 8, 8), (4, 4, 8, 8), (8, 4, 8, 8))})


@pytest.fixture
def model(tiny: Path) -> OnnxModel:
    return OnnxModel(tiny / "tiny.onnx")


@pytest.fixture
def samples(model: OnnxModel) -> Samples:
    """24 of them."""
    return open_samples(DataSource("data.npz"), input_specs_from_onnx(model.path), Preprocess())


@pytest.fixture
def ranges(model: OnnxModel, samples: Samples, tmp_path: Path) -> Ranges:
    (tmp_path / "ranges").mkdir()
    return Calibrate(method="minmax", watch="all")(tmp_path / "ranges", model, samples)


@pytest.fixture
def tensorrt_10(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine would say if it had TensorRT 10.3."""
    monkeypatch.setattr(tensorrt, "versions", lambda: {"tensorrt": "10.3.0.30", "gpu": "Orin"})


def scales_in(cache: bytes) -> dict[str, float]:
    """Name -> scale, by the format's description: eight hex digits of a big-endian float32."""
    pairs = [line.rpartition(": ") for line in cache.decode().splitlines()[1:]]
    return {name: struct.unpack(">f", bytes.fromhex(bits))[0] for name, _, bits in pairs}


def test_our_ranges_become_a_cache_for_the_tensorrt_at_hand(model: OnnxModel, ranges: Ranges) -> None:
    given, notes = scales_for_calibrator(model, ranges, "8.5.2.2", of_every_tensor=False)
    assert given.cache.startswith(b"TRT-8502-EntropyCalibration2\n")
    found = ranges_from_folder(ranges.path).tensors
    assert set(found) == {"image", "convolved", "active", "pooled", "flat", "scores"}
    assert scales_in(given.cache) == {name: np.float32(tensor.amax / 127) for name, tensor in found.items()}
    assert notes == ()


def test_tensors_without_a_scale_are_said(model: OnnxModel, samples: Samples, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    few = Calibrate(method="minmax", watch="tensorrt")(tmp_path / "few", model, samples)
    given, notes = scales_for_calibrator(model, few, "10.3.0", of_every_tensor=False)
    assert given.cache.startswith(b"TRT-100300-EntropyCalibration2\n")
    assert len(notes) == 1
    assert 'have no scale and stay in floating point; [calibrate] watch = "all" finds them' in notes[0]
    with pytest.raises(DataError, match="a cache for DLA needs each of them"):
        scales_for_calibrator(model, few, "10.3.0", of_every_tensor=True)


def test_ranges_of_another_model_are_refused(model: OnnxModel, ranges: Ranges) -> None:
    model.path.write_bytes(model.path.read_bytes().replace(b"scores", b"scored"))
    with pytest.raises(DataError, match="were found on model"):
        scales_for_calibrator(model, ranges, "10.3.0", of_every_tensor=False)


def test_samples_come_in_whole_batches(model: OnnxModel, samples: Samples) -> None:
    given = batches_for_calibrator(model, samples, "10.3.0", 8)
    batches = list(given.batches())
    assert [batch["image"].shape for batch in batches] == [(8, 4, 8, 8)] * 3
    with np.load("data.npz") as stored:
        assert np.array_equal(np.concatenate([batch["image"] for batch in batches]), stored["image"])
    other = batches_for_calibrator(model, samples, "8.6.1", 8)
    assert given.cache.parent == other.cache.parent
    assert given.cache != other.cache


def test_a_rest_of_samples_is_refused_before_anything_runs(model: OnnxModel, samples: Samples) -> None:
    with pytest.raises(ConfigError) as caught:
        batches_for_calibrator(model, samples, "10.3.0", 7)
    assert str(caught.value) == (
        "[build] native_batch_size is 7, 24 calibration samples are not a multiple of it; set it to 6, or "
        "limit the samples"
    )


@pytest.mark.usefixtures("tensorrt_10")
def test_the_stage_gives_the_calibrator_what_the_plan_says(model: OnnxModel, ranges: Ranges, samples: Samples) -> None:
    ours, theirs = Build(int8="native"), Build(int8="native", native_scales="tensorrt", native_batch_size=6)
    assert ours.calibration(TARGET, ranges, samples) == (ranges,)
    assert theirs.calibration(TARGET, ranges, samples) == (samples,)
    given = ours._with_machine(model, TARGET, ranges)[0]
    assert isinstance(given.native, GivenScales)
    assert given.native.cache.startswith(b"TRT-100300-EntropyCalibration2\nactive: ")
    assert given.timing_cache is not None
    given = theirs._with_machine(model, TARGET, samples)[0]
    assert isinstance(given.native, GivenBatches)
    assert given.native.batch_size == 6
    with pytest.raises(ConfigError, match="there are neither ranges nor samples; give --ranges or --data"):
        ours._with_machine(model, TARGET, None)


@pytest.mark.usefixtures("tensorrt_10")
def test_other_engines_are_given_nothing(model: OnnxModel, ranges: Ranges, samples: Samples) -> None:
    for stage, target in (
        (Build(), TARGET),
        (Build(int8="native"), BuildTarget("tensorrt", "fp16")),
        (Build(int8="native"), BuildTarget("onnxruntime", "int8")),
    ):
        assert stage.calibration(target, ranges, samples) == ()
        assert stage.options(target).native is None
    assert Build(timing_cache=False)._with_machine(model, BuildTarget("tensorrt", "fp16"), None)[0].timing_cache is None


needs_rtx = pytest.mark.skipif(
    bool(backend("tensorrt_rtx").why_not_build()), reason=backend("tensorrt_rtx").why_not_build() or "it is there"
)


@needs_rtx
def test_a_plan_for_tensorrt_for_rtx_is_refused_before_any_work(plan: Path) -> None:
    text = plan.read_text().replace("[calibrate]", '[build]\nint8 = "native"\n[calibrate]')
    plan.write_text(text.replace("[variants]\n", '[variants]\nbackends = ["onnxruntime", "tensorrt_rtx"]\n'))
    store = Store(plan.parent / "store")
    with pytest.raises(Unavailable, match=r'^tensorrt_rtx: native INT8 is requested, .* take int8 = "qdq"'):
        run(read_plan(plan), store, "build")
    assert store.account == []
    plan.write_text(plan.read_text().replace('"onnxruntime", "tensorrt_rtx"', '"onnxruntime"'))
    assert len(run(read_plan(plan), store, "build").engines) == 2, "what is not TensorRT's takes Q/DQ all the same"


def test_native_int8_is_never_judged_by_a_simulation(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(read_plan(plan), Store(plan.parent / "store"), "calibrate")
    variant = Variant(INT8, "tensorrt")
    plan.write_text(plan.read_text().replace("[calibrate]", '[build]\nint8 = "native"\n[calibrate]'))
    monkeypatch.setattr(tensorrt, "why_not_run", lambda: "tensorrt: no GPU")
    with pytest.raises(Unavailable, match=r"int8@tensorrt: native INT8 is in the engine .* \(tensorrt: no GPU\)"):
        judged_engine(read_plan(plan), made, variant, made.fp32)  # type: ignore[arg-type]


def test_the_verb_takes_ranges_or_data_for_native_int8_alone(command: Command, ranges: Ranges) -> None:
    build = ("build", "tiny.onnx", "--backend", "tensorrt_rtx", "--precision", "int8", "-o", "e.plan")
    assert ranges.path.is_dir()
    for more, status, words in (
        (
            ("--ranges", ranges.path),
            2,
            "--ranges: has an effect only with --int8 native --native-scales ranges; drop it",
        ),
        (("--data", "data.npz"), 2, "--data: has an effect only with --int8 native --native-scales tensorrt; drop it"),
        (("--int8", "native"), 2, "--ranges is missing: name the folder that `trtforge calibrate` wrote"),
        (("--int8", "native", "--native-scales", "tensorrt"), 2, "--data is missing"),
        (("--int8", "native", "--ranges", ranges.path), 3, "tensorrt_rtx: "),
    ):
        said = command(*build, *more)
        assert (said.status, words in said.err) == (status, True), said.err
    assert not Path("e.plan").exists()


def test_the_record_of_an_ordinary_build_is_as_before(command: Command, tiny: Path) -> None:
    assert command("build", "tiny.onnx", "-o", "e.onnx").status == 0
    assert json.loads((tiny / "e.onnx.json").read_text())["precision"] == "fp32"
