"""Our part of a refit on a pretended TensorRT, and what TensorRT for RTX's real parser says of a model's weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from engines.backends import tensorrt, tensorrt_rtx
from engines.contract import Array, BuildOptions, LayerFacts
from engines.errors import EngineError, NotTrusted, OutOfMemory, Unavailable
from engines.nvinfer.builder import logger
from engines.nvinfer.inspection import Inspection
from engines.nvinfer.loading import EngineLoader
from engines.refit import refitter
from engines.refit.refitter import PlanRefitter, layer_weights
from engines.refitting import ChangedWeights, RefitOutcome, RefittingBackend
from tests.engines.refit.pretended_refit import parts_of, plan_of, refitting_trt, role_named

NETWORK = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 2] y)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] b = {0.5, -0.5}> { a = MatMul(x, w) y = Add(a, b) }"""
W = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
HERE = {"tensorrt": "10.3.0"}
Floats = npt.NDArray[np.float32]
Draw = Callable[[int], tuple[Path, dict[str, Floats]]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(NETWORK), tmp_path / "new.onnx")
    return tmp_path / "new.onnx"


class Refitted:
    """A refit of one plan by a pretended TensorRT."""

    def __init__(self, model: Path, *, has_parser: bool = True, keeps: bool = True) -> None:
        self.trt, self.calls = refitting_trt(has_parser=has_parser, keeps=keeps)
        self.model, self.target = model, model.with_name("out.plan")
        self.seen: list[BuildOptions] = []

    def __call__(self, plan: bytes, changed: ChangedWeights = MappingProxyType({}), **options: Any) -> RefitOutcome:
        engine = self.model.with_name("engine.plan")
        engine.write_bytes(plan)
        record = {"backend": "tensorrt", "size_bytes": len(plan), "options": options, "precision": "fp32"}
        engine.with_name("engine.plan.json").write_text(json.dumps(record))
        loader = EngineLoader("tensorrt", lambda: self.trt, lambda: HERE)
        return PlanRefitter(loader, self._inspected)(engine, self.model, self.target, changed)

    def _inspected(self, _plan: bytes, _facts: object, options: BuildOptions) -> Inspection:
        self.seen.append(options)
        return Inspection(1, ("It was looked at.",), (LayerFacts("a", "product", "INT8", ("a",)),), "EngineInspector")

    @property
    def parts(self) -> dict[str, Any]:
        return parts_of(self.target.read_bytes())


@pytest.fixture
def refit(model: Path) -> Refitted:
    return Refitted(model)


def by_layers(monkeypatch: pytest.MonkeyPatch, weights: dict[str, Array]) -> None:
    """What the parser makes of a model in 8.5: layers with such weights."""
    read = {(key.split("/")[0], role_named(key.split("/")[1])): array for key, array in weights.items()}
    monkeypatch.setattr(refitter, "layer_weights", lambda *_: dict(read))


# 10 and later: TensorRT's own reader of ONNX files


def test_all_weights_go_in(refit: Refitted) -> None:
    outcome = refit(plan_of(), {"w": (("a", "MatMul"),)}, weights="refittable")
    assert refit.parts["names"] == {"w": W}
    assert refit.calls == ["read new.onnx", "written with ['INCLUDE_REFIT']"]
    assert (outcome.num_weights, outcome.is_refittable, outcome.size_bytes) == (1, True, refit.target.stat().st_size)
    assert (outcome.layers, outcome.num_int8, refit.seen) == ((), -1, []), "its layers are those of the engine before"


def test_before_10_14_an_engine_need_not_be_told_to_stay_refittable(model: Path) -> None:
    refit = Refitted(model, keeps=False)
    assert refit(plan_of(), weights="refittable").is_refittable
    assert refit.calls[-1] == "written with []"


def test_a_stripped_engine_is_filled_and_looked_at(refit: Refitted) -> None:
    profiles = [{"x": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}}]
    outcome = refit(plan_of(), weights="stripped", profiles=profiles, version_compatible=False, dla_core=-1)
    assert refit.calls[-1] == "written with []", "with its weights; they are the only ones that it takes"
    assert not outcome.is_refittable
    assert (outcome.num_int8, outcome.layers_from, outcome.notes) == (1, "EngineInspector", ("It was looked at.",))
    assert refit.seen[0].shapes["x"].opt == (2, 4)


def test_weights_that_the_model_lacks_are_named(refit: Refitted) -> None:
    with pytest.raises(EngineError) as caught:
        refit(plan_of(names={"w": [0.0] * 8, "v": [0.0]}), weights="refittable")
    assert str(caught.value) == (
        f"{refit.model.with_name('engine.plan')}: weights 'v' are missing in {refit.model} (Failed to refit all the "
        "weights.); build it again from that model"
    )
    assert not refit.target.exists(), "nothing is written"


def test_weights_that_were_folded_are_named(refit: Refitted) -> None:
    with pytest.raises(
        EngineError, match=r"engine.plan: weights 'b' have changed, which it does not let be replaced: "
    ):
        refit(plan_of(), {"w": (("a", "MatMul"),), "b": (("y", "Add"),)}, weights="refittable")
    assert refit.calls == [], "nothing was set"


def test_a_batch_normalization_is_one_layer_of_its_weights(refit: Refitted) -> None:
    layers = {"w/CONSTANT": W, "norm/SCALE": [0.0]}
    changed = {"gamma": (("norm", "BatchNormalization"),)}
    refit(plan_of(layers=layers), changed, weights="refittable")
    for readers in ((("norm", "BatchNormalization"), ("z", "Mul")), (("other", "BatchNormalization"),), ()):
        with pytest.raises(EngineError, match="weights 'gamma' have changed"):
            refit(plan_of(layers=layers), {"gamma": readers}, weights="refittable")


def test_an_engine_with_fixed_weights(refit: Refitted) -> None:
    with pytest.raises(
        EngineError, match=r'so that it cannot be refitted; build it with weights = "refittable" in \[bu'
    ):
        refit(plan_of(refittable=False), weights="refittable")


def test_what_the_library_says_when_it_fails(refit: Refitted) -> None:
    tail = logger(refit.trt)[1]
    load = refit.trt.Runtime

    def runtime(log: object) -> Any:
        tail.add("[refit.cpp] Out of memory")
        return load(log)

    vars(refit.trt)["Runtime"] = runtime
    with pytest.raises(
        OutOfMemory, match=r"engine.plan: cannot be refitted with .*new.onnx \(\[refit.cpp\] Out of mem"
    ):
        refit(plan_of(breaks=True), weights="refittable")
    with pytest.raises(OutOfMemory, match=r"engine.plan: the GPU's memory does not hold the engine"):
        refit(plan_of(damaged=True), weights="refittable")
    assert not refit.target.exists()


def test_an_engine_of_another_version_or_unsigned_is_not_loaded(
    refit: Refitted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    newer = b"ftrt" + bytes(20) + bytes((11, 0, 0, 1)) + plan_of()[28:]
    with pytest.raises(Unavailable, match=r"was built by version 11.0.0, 10.3.0 is here"):
        refit(newer, weights="refittable")
    envelope = pytest.importorskip("engines.signing.envelope")
    pytest.importorskip("securesystemslib")
    monkeypatch.setenv("TRTFORGE_TRUSTED", str(envelope.new_key(tmp_path / "release.key")))
    with pytest.raises(NotTrusted, match="is not signed"):
        refit(plan_of(), weights="refittable")


# Before 10: by the layers that the parser makes


def test_weights_of_layers_go_in(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refit = Refitted(model, has_parser=False)
    by_layers(monkeypatch, {"w/CONSTANT": np.array(W, np.float32), "b/CONSTANT": np.zeros(2, np.float32)})
    outcome = refit(plan_of(), {"w": (("a", "MatMul"),)}, weights="refittable")
    assert refit.parts["layers"] == {"w/CONSTANT": W}
    assert outcome.is_refittable


def test_layers_whose_weights_are_missing_or_of_another_size(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refit = Refitted(model, has_parser=False)
    by_layers(monkeypatch, {"conv/KERNEL": np.zeros(3, np.float32), "conv/BIAS": np.zeros(0, np.float32)})
    with pytest.raises(
        EngineError, match=r"weights of layers 'w \(constant\)', 'conv \(bias\)' are missing in .*new.onn"
    ):
        refit(plan_of(layers={"w/CONSTANT": W, "conv/BIAS": [0.0]}), weights="refittable")
    with pytest.raises(
        EngineError, match=r"engine.plan: does not take the kernel of layer 'conv' \(it gave no reason\)"
    ):
        refit(plan_of(layers={"conv/KERNEL": [0.0]}), weights="refittable")


# The real parser

CONVOLUTIONS = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 2, 4, 4] x) => (float[N, 2] y)
{
    [quantize] q = QuantizeLinear(x, s, z)  [restore] r = DequantizeLinear(q, s, z)
    [quantize_w] v = QuantizeLinear <axis = 0> (w, ws, wz)  [restore_w] u = DequantizeLinear <axis = 0> (v, ws, wz)
    [conv] c = Conv(r, u, b)  [norm] n = BatchNormalization(c, gamma, beta, mean, var)
    [up] d = ConvTranspose(n, k)  [pool] p = GlobalAveragePool(d)  [flat] f = Flatten(p)  [fc] y = MatMul(f, m)
}"""
SHAPES = {
    "w": (3, 2, 1, 1), "b": (3,), "gamma": (3,), "beta": (3,), "mean": (3,), "var": (3,), "k": (3, 4, 1, 1),
    "m": (4, 2), "s": (), "ws": (3,),
}  # fmt: skip


@pytest.fixture
def quantized(tmp_path: Path) -> Draw:
    """A network with weights of each kind, drawn by a seed; its file, and the weights."""

    def draw(seed: int) -> tuple[Path, dict[str, Floats]]:
        random, model = np.random.default_rng(seed), onnx.parser.parse_model(CONVOLUTIONS)
        arrays = {name: random.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in SHAPES.items()}
        zeros = {"z": np.zeros((), np.int8), "wz": np.zeros(3, np.int8)}
        for name, array in (*arrays.items(), *zeros.items()):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        file = tmp_path / f"{seed}.onnx"
        onnx.save(model, file)
        return file, arrays

    return draw


def test_weights_by_layer_as_the_real_parser_has_them(
    quantized: Draw,
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, which parses without a GPU, is not installed")
    file, arrays = quantized(0)
    weights = layer_weights(trt, file, BuildOptions())
    roles = trt.WeightsRole
    scale = arrays["gamma"] / np.sqrt(arrays["var"] + np.float32(1e-5))
    wanted = {
        ("w", roles.CONSTANT): arrays["w"], ("s", roles.CONSTANT): arrays["s"], ("ws", roles.CONSTANT): arrays["ws"],
        ("conv", roles.BIAS): arrays["b"], ("norm", roles.SCALE): scale,
        ("norm", roles.SHIFT): arrays["beta"] - arrays["mean"] * scale,
        ("up", roles.KERNEL): arrays["k"], ("m", roles.CONSTANT): arrays["m"],
    }  # fmt: skip
    assert wanted.keys() <= weights.keys()
    for key, array in wanted.items():
        np.testing.assert_allclose(np.asarray(weights[key], np.float32), array.reshape(-1), rtol=1e-6, err_msg=str(key))
    assert weights["conv", roles.KERNEL].size == 0, "it comes as a tensor, out of DequantizeLinear"
    other = layer_weights(trt, quantized(1)[0], BuildOptions())
    assert other.keys() == weights.keys(), "the same layers, by the same names, whatever the weights"


def test_a_model_that_the_real_parser_refuses(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, which parses without a GPU, is not installed")
    det = '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 2, 2] x) => (float[1] y) { y = Det(x) }'
    onnx.save(onnx.parser.parse_model(det), tmp_path / "det.onnx")
    with pytest.raises(EngineError, match=r"det.onnx: tensorrt_rtx cannot take the model"):
        layer_weights(trt, tmp_path / "det.onnx", BuildOptions())


def test_tensorrt_for_rtx_builds_no_engine_for_it_without_a_gpu(
    quantized: Draw,
) -> None:
    """Why it is no ``RefittingBackend``: weights that can be replaced let its compiler look for a device."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, which builds without a GPU, is not installed")
    if not tensorrt_rtx.why_not_run():
        pytest.skip("there is a GPU here, which it would find")
    assert isinstance(tensorrt, RefittingBackend)
    assert not isinstance(tensorrt_rtx, RefittingBackend)
    log, tail = logger(trt)
    tail.clear()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(quantized(0)[0]))
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *[(1, 2, 4, 4)] * 3)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is None
    assert "CHECK(status == CUDA_SUCCESS) failed" in tail.text()


def test_without_a_gpu_nothing_is_loaded(model: Path, tmp_path: Path) -> None:
    if not (reason := tensorrt.why_not_build()):
        pytest.skip("there is a GPU here")
    with pytest.raises(Unavailable) as caught:
        tensorrt.refit(tmp_path / "engine.plan", model, tmp_path / "out.plan", {})
    assert str(caught.value) == reason
