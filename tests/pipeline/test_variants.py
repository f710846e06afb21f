"""Which variants a plan has, and in which order."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from engines.precision import FP16, INT8
from engines.torch_graph import library
from pipeline import flow
from pipeline.artifact import PRUNED, TRAINED, TUNED, OnnxModel
from pipeline.errors import ConfigError, Unavailable
from pipeline.placing.decided import timing_for
from pipeline.plan import read_plan
from pipeline.release.bundle_writer import narrowed
from pipeline.results import Variant, variant_named
from pipeline.stages.cast import Cast
from pipeline.stages.ptq import Ptq
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from pipeline.variants import stage_for, variants
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


def test_other_networks_have_ranges_models_and_verdicts_of_their_own(folder: Path) -> None:
    change(folder, 'precisions = ["fp32", "fp16", "int8"]', 'precisions = ["fp32", "int8"]')
    with (folder / "plan.toml").open("a") as stream:
        stream.write("[prune]\nshare = 0.25\n[tune]\nepochs = 1\n")
    plan = read_plan(folder / "plan.toml")
    assert plan.variants.networks == (TRAINED, PRUNED, TUNED)
    made = flow.run(plan, Store(folder / "store"), "validate")
    names = [
        "fp32@onnxruntime", "int8@onnxruntime", "pruned+fp32@onnxruntime", "pruned+int8@onnxruntime",
        "tuned+int8@onnxruntime",
    ]  # fmt: skip
    assert [variant.name for variant in made.models] == names
    assert [variant.name for variant in made.verdicts] == names
    networks = [made.network_of(variant) for variant in made.models]
    trained, pruned = (networks[index].ranges for index in (0, 2))
    assert trained is not None
    assert pruned is not None
    assert trained.digest() != pruned.digest()
    assert len({model.digest() for model in list(made.models.values())[:4]}) == 4
    assert {variant.network for variant in made.tolerances} <= {TRAINED}, "others differ by more than rounding"
    judged = [verdict.read()["tolerance"] for verdict in made.verdicts.values()]
    assert [each["max_metric_drop"] for each in judged] == [0.001, 0.3, 0.02, 0.02, 0.02]
    weights = onnx.load(networks[-1].fp32.path).graph.initializer
    assert any((numpy_helper.to_array(weight) == 0).mean() >= 0.2 for weight in weights), "it is the pruned one, tuned"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            'networks = ["tuned"]\nprecisions = ["fp32"]',
            "of 'tuned' nothing is made; it needs int8 among the",
        ),
        ('networks = ["tuned"]\nprecisions = ["int8"]\nbackends = ["litert"]', "of 'tuned' nothing is made"),
        (
            'networks = ["pruned"]\nbackends = ["litert"]',
            "of 'pruned' nothing is made; it needs a backend that takes",
        ),
        ('networks = ["pruend"]', "[variants] networks: is 'pruend'; did you mean 'pruned'?"),
    ],
)
def test_a_network_of_which_nothing_is_made_is_refused(folder: Path, text: str, sentence: str) -> None:
    plan = (folder / "plan.toml").read_text()
    (folder / "plan.toml").write_text(re.sub(r"\[variants\]\n(.+\n)+", f"[variants]\n{text}\n", plan))
    with pytest.raises(ConfigError) as caught:
        flow.run(read_plan(folder / "plan.toml"), Store(folder / "store"), "benchmark")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("table", ["[tune]\n", "[prune]\nepochs = 1\n"])
def test_without_torch_a_plan_that_trains_is_refused_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.setattr(library, "why_not", lambda: f"torch is not installed; {library.INSTALL}")
    with (folder / "plan.toml").open("a") as stream:
        stream.write(table)
    store = Store(folder / "store")
    with pytest.raises(Unavailable, match=r"networks are to be trained, and torch is not installed; pip install"):
        flow.run(read_plan(folder / "plan.toml"), store, "benchmark")
    assert store.account == []


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


def test_what_is_written_for_the_edge_tpu_follows_from_build(folder: Path) -> None:
    change(folder, 'backends = ["onnxruntime"]', 'backends = ["litert"]')
    plan = read_plan(folder / "plan.toml", ["build.edgetpu=true"])
    assert stage_for(plan, Variant(INT8, "litert")) == Ptq(edgetpu=True)
    assert stage_for(read_plan(folder / "plan.toml"), Variant(INT8, "litert")) == Ptq()
