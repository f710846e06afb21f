"""Asking a built engine for its layers: what cannot be asked is a note, on the real library too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.backends import tensorrt_rtx
from engines.contract import BuildOptions, ShapeRange
from engines.cuda.device import why_no_gpu
from engines.nvinfer.builder import logger
from engines.nvinfer.inspection import inspected
from engines.onnx_model import facts

SHAPES = {"x": ShapeRange((1, 3), (2, 3), (8, 3))}


def test_an_engine_that_does_not_load_here_is_said(linear: Path, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    if not why_no_gpu():
        pytest.skip("there is a GPU, and it may load")
    options = BuildOptions(shapes=SHAPES)
    record = tensorrt_rtx.build(linear, tmp_path / "e.plan", options)
    found = inspected(trt, logger(trt)[0], (tmp_path / "e.plan").read_bytes(), facts(linear), options)
    assert (found.num_int8, found.layers) == (-1, ())
    assert found.notes == ("Its layers are not known: the engine did not load after it was built.",)
    assert record.options["profiles"] == [{"x": {"min": (1, 3), "opt": (2, 3), "max": (8, 3)}}]


def test_an_engine_without_weights_is_not_asked(linear: Path) -> None:
    found = inspected(None, None, b"", facts(linear), BuildOptions(weights="stripped"))
    assert (found.num_int8, found.layers) == (-1, ())
    assert "has no weights" in found.notes[0]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (None, "EngineError: EngineInspector: gave no JSON with Layers (TypeError: "),
        ('{"Bindings": []}', "EngineError: EngineInspector: gave no JSON with Layers"),
        ('{"Layers": [{"Name": "conv", "Inputs": 7}]}', "TypeError: "),
        ('{"Layers": [{"Name": "conv", "Weights": {"Type": null}, "Outputs": null}]}', "TypeError: "),
    ],
)
def test_whatever_an_inspector_tells_the_engine_is_built(linear: Path, told: str | None, words: str) -> None:
    """Of generations whose words are not known yet."""
    inspector = SimpleNamespace(get_engine_information=lambda form: told)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector, create_execution_context=lambda: None)
    trt = SimpleNamespace(
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
    )
    found = inspected(trt, None, b"plan", facts(linear), BuildOptions(shapes=SHAPES))
    assert (found.num_int8, found.layers) == (-1, ())
    assert found.notes[0].startswith(f"Its layers are not known ({words}")
    engine.create_engine_inspector = lambda: None
    (note,) = inspected(trt, None, b"plan", facts(linear), BuildOptions(shapes=SHAPES)).notes
    assert note.startswith("Its layers are not known (AttributeError: ")
