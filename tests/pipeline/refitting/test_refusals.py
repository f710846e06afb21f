"""What is refused of an engine of TensorRT by its record alone, before anything of the library is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.backends import tensorrt
from engines.contract import LayerFacts
from engines.refit.network import network_graph
from engines.refitting import RefitOutcome
from pipeline.artifact import Engine, OnnxModel, TfliteModel
from pipeline.errors import ConfigError
from pipeline.refitting.refit import Refit, graph_of, refittable_graph, refitted_record
from tests.conftest import Command
from tests.pipeline.refitting.slate import write_network


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_network(tmp_path / "model.onnx")


@pytest.fixture
def engine(tmp_path: Path, model: Path) -> Path:
    """What is left of a real one: its record, and bytes that nothing loads."""
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"ftrt" + bytes(60))
    write_record(plan, {"weights": "refittable", "native": ""}, graph=network_graph(model).record())
    return plan


def write_record(plan: Path, options: dict[str, Any], **more: Any) -> dict[str, Any]:
    record = {"backend": "tensorrt", "precision": "int8", "options": options, "notes": ["Built."], **more}
    plan.with_name(f"{plan.name}.json").write_text(json.dumps(record))
    return record


def test_scales_of_a_calibrator_are_of_the_old_weights(engine: Path, model: Path) -> None:
    record = write_record(engine, {"weights": "refittable", "native": "samples"}, graph=network_graph(model).record())
    with pytest.raises(ConfigError, match=r"engine.plan: its INT8 is of TensorRT's calibrator, whose scales are of "):
        refittable_graph(Engine(engine, "tensorrt"), record)


@pytest.mark.parametrize("graph", [None, {}, {"nodes": [[1]], "weights": {}, "readers": {}}, []])
def test_a_record_of_an_earlier_release_or_damaged(engine: Path, graph: object) -> None:
    record = write_record(engine, {"weights": "refittable"}, **({} if graph is None else {"graph": graph}))
    with pytest.raises(ConfigError, match=r"engine.plan: its record does not say what graph it was built from \("):
        refittable_graph(Engine(engine, "tensorrt"), record)


def test_engines_of_others(engine: Path, model: Path, command: Command) -> None:
    words = "is an engine for onnxruntime, only those for tensorrt can be refitted; build one from the model instead"
    with pytest.raises(ConfigError, match=words):
        refittable_graph(Engine(engine, "onnxruntime"), {})
    own = engine.with_name("own.onnx")
    built = command("build", model, "-o", own)
    assert built.status == 0, built.err
    said = command("refit", own, model, "-o", engine.with_name("out.onnx"))
    assert (said.status, said.err) == (2, f"trtforge: {own}: {words}\n")


def test_a_model_that_is_no_onnx_file(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.onnx: is no ONNX file, of which engines that can be refitted are bu"):
        graph_of(TfliteModel(model))


def test_without_a_gpu_it_ends_before_the_library(engine: Path, model: Path, command: Command, tmp_path: Path) -> None:
    if not (reason := tensorrt.why_not_build()):
        pytest.skip("there is a GPU here")
    before = sorted(tmp_path.iterdir())
    said = command("refit", engine, model, "-o", tmp_path / "out.plan")
    assert (said.status, said.out, said.err) == (3, "", f"trtforge: {reason}\n")
    other = write_network(tmp_path / "model.onnx", more="y = Sub(xw, folded_b)")
    said = command("refit", engine, other, "-o", tmp_path / "out.plan")
    assert said.status == 2
    assert "node 'bias' (Sub) stands where the engine has node 'bias' (Add)" in said.err
    assert sorted(tmp_path.iterdir()) == before


def test_what_becomes_of_the_record(engine: Path) -> None:
    options = {"weights": "stripped", "native": "", "cuda_graph": True}
    record = write_record(engine, options, sha256="ab", builds=[], min_batch=1, max_batch=8, num_int8=-1, layers=[])
    outcome = RefitOutcome(77, 0.26, 3, False, 2, (LayerFacts("a", "product", "INT8", ("a",)),), "EngineInspector")
    new = refitted_record(record, outcome)
    assert new["options"] == options | {"weights": "fixed"}
    assert not new.keys() & {"sha256", "builds", "min_batch", "max_batch"}, "whoever puts it somewhere says these"
    assert (new["num_int8"], new["layers_from"], new["layers"][0]["precision"]) == (2, "EngineInspector", "INT8")
    assert new["notes"] == ["Built.", "Refitted with 3 weights in 0.3 s, and not built for them."]
    kept = refitted_record(record, RefitOutcome(77, 0.26, 3, True))
    assert (kept["options"]["weights"], kept["num_int8"], kept["size_bytes"]) == ("refittable", -1, 77)


def test_versions_and_source_stand_in_its_recipe(engine: Path, model: Path) -> None:
    refit, named = Refit(), Engine(engine, "reference")
    assert refit.versions(named, OnnxModel(model)).keys() == {"onnx", "numpy"}
    assert refit.modules(named, OnnxModel(model)) == ("engines.backends.reference",)
