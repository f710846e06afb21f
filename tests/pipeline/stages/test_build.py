"""The stage `build`: the engine's record, shapes, and builders that fail."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

from engines import backend
from engines.backends import reference, tensorrt
from engines.contract import ShapeRange
from engines.plugin_library import NAMED, sha256_of_library
from pipeline.artifact import OnnxModel, Ranges
from pipeline.builder.plugins import name_plugins
from pipeline.errors import ConfigError, EngineError, StageError, Unavailable
from pipeline.stages import build as build_stage
from pipeline.stages.build import Build, BuildTarget
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from tests.engines.plugins import GIVES, NOTHING, for_another_processor, plugin_library
from tests.pipeline.stages.networks import Out, types

PROFILE = {"image": ShapeRange((1, 16, 6, 6), (2, 16, 6, 6), (4, 16, 6, 6))}


def test_a_build_leaves_its_record_beside_the_engine(net: OnnxModel, out: Out) -> None:
    engine = Build()(out(), net, BuildTarget("onnxruntime", "fp32", PROFILE))
    assert (engine.backend, engine.min_batch, engine.max_batch) == ("onnxruntime", 1, 4)
    record = json.loads(engine.beside("record.json").read_text())
    assert record["precision"] == "fp32"
    assert record["size_bytes"] == engine.path.stat().st_size
    assert record["num_quantizable"] == 2
    assert record["num_int8"] == 0
    assert [spec["name"] for spec in record["inputs"]] == ["image"]
    assert record["inputs"][0]["shape"] == [-1, 16, 6, 6]
    assert record["versions"]["onnxruntime"] == backend("onnxruntime").versions()["onnxruntime"]
    assert record["made_from"] == {"model": net.digest(), "calibration": ""}


def test_the_largest_batch_is_that_of_all_profiles(net: OnnxModel, out: Out) -> None:
    more = ({"image": ShapeRange((8, 16, 6, 6), (8, 16, 6, 6), (64, 16, 6, 6))},)
    engine = Build()(out(), net, BuildTarget("onnxruntime", "fp32", PROFILE, more))
    assert (engine.min_batch, engine.max_batch) == (1, 64)
    assert BuildTarget("onnxruntime", "fp32", more_shapes=more).batch_bounds() == (8, 64)


def test_a_recipe_has_what_is_below_tensorrt(net: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    below = {"tensorrt": "8.6.2", "nvidia_driver": "540.4.0", "cudnn": "8.9.4", "cublas": "12.2.5"}
    monkeypatch.setattr(tensorrt, "versions", lambda: dict(below))
    monkeypatch.setattr(build_stage, "l4t", lambda root: "36.3.0")
    target = BuildTarget("tensorrt", "fp32")
    assert (below | {"l4t": "36.3.0"}).items() <= Build().versions(net, target).items()
    without = Build(external_kernels=False).versions(net, target)
    assert "cudnn" not in without
    assert "cublas" not in without
    assert "l4t" not in Build().versions(net, BuildTarget("onnxruntime", "fp32"))


def test_without_shapes_nothing_bounds_the_batch(net: OnnxModel, out: Out) -> None:
    engine = Build()(out(), net, BuildTarget("onnxruntime", "fp32"))
    assert (engine.min_batch, engine.max_batch) == (0, 0)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (ShapeRange((2, 4), (1, 4), (3, 4)), r"min \(2, 4\), opt \(1, 4\), max \(3, 4\) are not positive and in order"),
        (ShapeRange((0, 4), (1, 4), (3, 4)), "every dimension needs 0 < min <= opt <= max"),
        (ShapeRange((1, 4), (4,), (8, 4)), r"min, opt and max have \[1, 2\] dimensions; give equally many"),
    ],
)
def test_shapes_out_of_order_are_refused(net: OnnxModel, out: Out, shape: ShapeRange, words: str) -> None:
    with pytest.raises(ConfigError, match=f"shapes of 'image': .*{words}"):
        Build()(out(), net, BuildTarget("onnxruntime", "fp32", {"image": shape}))


def test_shapes_that_do_not_fit_the_model_are_refused(net: OnnxModel, out: Out) -> None:
    wrong = {"image": ShapeRange((1, 3, 6, 6), (1, 3, 6, 6), (1, 3, 6, 6))}
    with pytest.raises(EngineError, match=r"input 'image' is \(\?, 16, 6, 6\), its min shape \(1, 3, 6, 6\)"):
        Build()(out(), net, BuildTarget("onnxruntime", "fp32", wrong))


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_model_of_another_precision_than_asked_is_refused(net: OnnxModel, out: Out, precision: Any) -> None:
    with pytest.raises(EngineError, match=f"precision {precision} is requested"):
        Build()(out(), net, BuildTarget("onnxruntime", precision))


def crash(*_args: object) -> None:
    """What a builder's native code may do."""
    print("tactic 42", flush=True)
    ctypes.string_at(0)


def test_a_builder_that_crashes_is_one_sentence_and_leaves_nothing(
    net: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_stage, "_build", crash)
    store = Store(tmp_path / "store")
    with pytest.raises(StageError, match="build fp32 for onnxruntime: the process was ended by SIGSEGV") as caught:
        store.run(Build(), net, BuildTarget("onnxruntime", "fp32"))
    assert "tactic 42" in str(caught.value)
    assert [path for path in store.folder.rglob("*") if path.name != "tmp"] == []


def test_a_backend_that_is_not_there_is_unavailable(net: OnnxModel, out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "why_not_build", lambda: "reference: is on holiday; call it back")
    with pytest.raises(Unavailable, match="is on holiday; call it back"):
        Build()(out(), net, BuildTarget("reference", "fp32"))


needs_rtx = pytest.mark.skipif(
    bool(backend("tensorrt_rtx").why_not_build()), reason=backend("tensorrt_rtx").why_not_build() or "it is there"
)


@needs_rtx
class TestTensorRTRTX:
    """Real ahead-of-time builds."""

    def test_it_builds_for_the_capability_asked_for(self, net: OnnxModel, out: Out) -> None:
        engine = Build(compute_capabilities=("8.6",))(out(), net, BuildTarget("tensorrt_rtx", "fp32", PROFILE))
        assert engine.path.suffixes == [".rtx", ".plan"]
        assert json.loads(engine.beside("record.json").read_text())["size_bytes"] > 1000

    def test_a_dynamic_input_without_shapes_is_refused_by_name(self, net: OnnxModel, out: Out) -> None:
        with pytest.raises(EngineError, match=r"'image'.*shape"):
            Build()(out(), net, BuildTarget("tensorrt_rtx", "fp32"))

    def test_an_unsupported_capability_lists_those_there_are(self, net: OnnxModel, out: Out) -> None:
        with pytest.raises(Unavailable, match=r"compute capability '9\.0' is requested.*builds for 7\.5, 8\.0, 8\.6"):
            Build(compute_capabilities=("9.0",))(out(), net, BuildTarget("tensorrt_rtx", "fp32", PROFILE))

    def test_it_builds_int8_with_fp16_for_the_rest(self, net: OnnxModel, ranges: Ranges, out: Out) -> None:
        quantized = Quantize(target="tensorrt", rest="fp16", small_products="int8")(out(), net, ranges)
        assert onnx.load(quantized.path).opset_import[0].version == 19
        halves = {name for name, kind in types(onnx.load(quantized.path)).items() if kind == onnx.TensorProto.FLOAT16}
        assert "active" in halves
        engine = Build(compute_capabilities=("8.9",))(out(), quantized, BuildTarget("tensorrt_rtx", "int8", PROFILE))
        record = json.loads(engine.beside("record.json").read_text())
        assert record["num_int8"] == record["num_quantizable"] == 2

    def test_fp32_for_turing_is_refused_in_words(self, net: OnnxModel, out: Out) -> None:
        """In a process of its own: the next build in one that failed so comes out different."""
        if not backend("tensorrt_rtx").versions()["tensorrt_rtx"].startswith("1.7"):
            pytest.skip("version 1.7 alone lacks FP32 products for 7.5")
        with pytest.raises(
            EngineError, match=r"no FP32 matrix products for compute capability 7\.5; build fp16 for it"
        ):
            Build(compute_capabilities=("7.5",))(out(), net, BuildTarget("tensorrt_rtx", "fp32", PROFILE))

    def test_it_builds_int8_from_the_tensorrt_placement(self, net: OnnxModel, ranges: Ranges, out: Out) -> None:
        quantized = Quantize(target="tensorrt")(out(), net, ranges)
        stage = Build(compute_capabilities=("8.9",))
        engine = stage(out(), quantized, BuildTarget("tensorrt_rtx", "int8", PROFILE))
        assert json.loads(engine.beside("record.json").read_text())["num_int8"] >= 1


def test_capabilities_are_for_ahead_of_time_builds_alone(net: OnnxModel, out: Out) -> None:
    """One plan serves several backends; the option is documented as one of ahead-of-time builds."""
    assert Build(compute_capabilities=("8.6",))(out(), net, BuildTarget("onnxruntime", "fp32")).path.is_file()


class TestPlugins:
    """Libraries that are named: which files, and what of them stands in a recipe."""

    @pytest.fixture(autouse=True)
    def none_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(NAMED, "")

    def test_the_digest_stands_in_the_recipe_and_the_place_does_not(
        self, net: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tensorrt, "versions", dict)
        first, second = (plugin_library(tmp_path / name, NOTHING) for name in "ab")
        second.write_bytes(first.read_bytes())
        target, stage, store = BuildTarget("tensorrt", "fp32"), Build(plugins=("libs/libmy.so",)), Store(tmp_path / "s")
        recipes = []
        for file in (first, second):
            name_plugins([file])
            recipes.append(store.recipe(stage, net, target))
            assert stage.options(target).plugins == (file.resolve(),)
        assert recipes[0] == recipes[1]
        assert recipes[0]["versions"]["plugin libmy.so"] == sha256_of_library(first)
        second.write_bytes(first.read_bytes() + b" ")
        assert store.recipe(stage, net, target) != recipes[0]
        assert "plugin libmy.so" not in stage.versions(net, BuildTarget("onnxruntime", "fp32"))
        assert stage.options(BuildTarget("onnxruntime", "fp32")).plugins == ()

    def test_files_that_are_not_there_or_of_one_name(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"plugins: .*none\.so does not exist, or is no file; name the shared li"):
            name_plugins([tmp_path / "none.so"])
        with pytest.raises(ConfigError, match=r"two libraries are called libmy\.so; rename one"):
            Build(plugins=("a/libmy.so", "b/libmy.so"))

    def test_the_real_builder_loads_the_library(self, net: OnnxModel, out: Out, tmp_path: Path) -> None:
        """In the process of the build, on TensorRT for RTX, whose registry is a real one."""
        if reason := backend("tensorrt_rtx").why_not_build():
            pytest.skip(reason)
        stage, target = Build(plugins=("libmy.so",)), BuildTarget("tensorrt_rtx", "fp32", PROFILE)
        name_plugins([plugin_library(tmp_path, GIVES)])
        record = json.loads(stage(out(), net, target).beside("record.json").read_text())
        sha256 = sha256_of_library(tmp_path / "libmy.so")
        assert record["options"]["plugins"] == [{"name": "libmy.so", "sha256": sha256, "is_inside": False}]
        assert record["versions"]["plugin libmy.so"] == sha256
        name_plugins([for_another_processor(tmp_path / "libmy.so")])
        with pytest.raises(Unavailable, match=r"libmy\.so: is compiled for \w+, this machine is \w+; name the library"):
            stage(out(), net, target)
