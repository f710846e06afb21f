"""Which variants a plan has, and in which order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from engines.precision import FP16, INT8
from pipeline import flow
from pipeline import variants as variants_module
from pipeline.artifact import OnnxModel
from pipeline.plan import read_plan
from pipeline.release.bundle_writer import narrowed
from pipeline.results import TRAINED, Network, Variant, variant_named
from pipeline.stages.cast import Cast
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from pipeline.variants import timing_for, variants
from tests.pipeline.plan_folder import change


def test_variants_come_backend_by_backend_in_the_plans_order(folder: Path) -> None:
    change(folder, 'precisions = ["fp32", "fp16", "int8"]', 'precisions = ["int8", "fp32"]')
    change(folder, 'backends = ["onnxruntime"]', 'backends = ["reference", "onnxruntime"]')
    plan = read_plan(folder / "plan.toml")
    names = ["int8@reference", "fp32@reference", "int8@onnxruntime", "fp32@onnxruntime"]
    assert [variant.name for variant in variants(plan, "benchmark")] == names
    assert [variant.name for variant in variants(plan, "quantize")] == ["int8@reference", "int8@onnxruntime"]
    assert list(variants(plan, "cast")) == []


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Variant(INT8, "tensorrt"), "int8@tensorrt"),
        (Variant(FP16, "onnxruntime", "tuned"), "tuned+fp16@onnxruntime"),
    ],
)
def test_a_variant_is_read_back_from_its_name(variant: Variant, name: str) -> None:
    assert variant.name == name
    assert variant_named(name) == variant


def test_another_network_has_ranges_models_and_tolerances_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was tuned or pruned will be: here the trained network with its first weights doubled."""

    def networks_of(fp32: OnnxModel) -> dict[str, Network]:
        model = onnx.load(fp32.path)
        weight = model.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
        onnx.save(model, folder / "tuned.onnx")
        return {TRAINED: Network(fp32), "tuned": Network(OnnxModel(folder / "tuned.onnx"))}

    monkeypatch.setattr(flow, "networks_of", networks_of)
    monkeypatch.setattr(variants_module, "network_names", lambda: (TRAINED, "tuned"))
    change(folder, 'precisions = ["fp32", "fp16", "int8"]', 'precisions = ["fp32", "int8"]')
    made = flow.run(read_plan(folder / "plan.toml"), Store(folder / "store"), "infer")
    names = ["fp32@onnxruntime", "int8@onnxruntime", "tuned+fp32@onnxruntime", "tuned+int8@onnxruntime"]
    assert [variant.name for variant in made.models] == names
    trained, tuned = (network.ranges for network in made.networks.values())
    assert trained is not None
    assert tuned is not None
    assert trained.digest() != tuned.digest()
    assert len({model.digest() for model in made.models.values()}) == len(names)
    assert len({outputs.digest() for outputs in made.outputs.values()}) == len(names)


def test_what_was_measured_for_a_placement_is_measured_once(folder: Path) -> None:
    change(folder, 'precisions = ["fp32", "fp16", "int8"]', 'precisions = ["int8"]')
    with (folder / "plan.toml").open("a") as stream:
        stream.write('[quantize]\nplacement = "timed"\n')
    plan = read_plan(folder / "plan.toml")
    runs = []
    for _ in range(2):
        store = Store(folder / "store")
        made = flow.run(plan, store, "quantize")
        served = [
            (entry.stage, entry.served) for entry in store.account if entry.stage in ("placement_times", "quantize")
        ]
        runs.append((served, made.models[Variant(INT8, "onnxruntime")].digest()))
    assert [served for served, _ in runs] == [
        [("placement_times", False), ("quantize", False)],
        [("placement_times", True), ("quantize", True)],
    ]
    assert runs[0][1] == runs[1][1]
    assert any("placement by time" in note for note in made.models[Variant(INT8, "onnxruntime")].notes())


def test_only_int8_for_onnxruntime_is_placed_by_time(folder: Path) -> None:
    model = OnnxModel(folder / "tiny.onnx")
    timed = Quantize(target="onnxruntime", placement="timed")
    assert timing_for(timed, model) is not None
    for stage in (replace(timed, target="tensorrt"), replace(timed, placement="static"), Cast()):
        assert timing_for(stage, model) is None
    plan = read_plan(folder / "plan.toml")
    assert narrowed(replace(plan, quantize=timed)).quantize.placement == "static", "a bundle's device is another CPU"
