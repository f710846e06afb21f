"""Networks trained with quantization by other tools, in and out: their files, the tools' own answers beside them.

The files are those that `tests/data/quantized/write_fixtures.py` had the tools write: torch's FX graphs by the old
exporter, torchao's PT2E, and TFMOT (a SavedModel, by tf2onnx). All are symmetric: TensorRT takes them unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from calibration.quantized.grids import check_quantized
from calibration.quantized.symmetric import symmetric_from_quantized
from engines.backends import onnxruntime, tensorrt_rtx
from engines.contract import BuildOptions, ShapeRange
from engines.onnx_model import facts_from_model
from pipeline.artifact import OnnxModel
from pipeline.stages.export import Export
from tests.calibration.quantized.test_symmetric import check_taken_by_tensorrt, scales
from tests.quantized_files import Array, answers, sqnr_db

if onnxruntime.why_not_build():
    pytest.skip(onnxruntime.why_not_build(), allow_module_level=True)

FOLDER = Path(__file__).resolve().parents[2] / "data" / "quantized"
LEAST_SQNR_DB = {"fx_qat": 120.0, "pt2e_qat": 120.0}
"""To the tool's own answer. TFMOT's output is rounded, where what is a step away is all that can differ."""
NUM_PRODUCTS = 3


class RoundTrip(NamedTuple):
    name: str
    came: onnx.ModelProto
    exported: onnx.ModelProto
    x: Array
    y: Array
    """What the tool answers."""


@pytest.fixture(scope="module", params=["fx_qat", "pt2e_qat", "tfmot_qat"])
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RoundTrip:
    file = FOLDER / f"{request.param}.onnx"
    exported = Export()(tmp_path_factory.mktemp(request.param), OnnxModel(file))
    with np.load(file.with_suffix(".npz")) as stored:
        return RoundTrip(request.param, onnx.load(file), onnx.load(exported.path), stored["x"], stored["y"])


def assert_answers(trip: RoundTrip, answered: Array) -> None:
    if (least := LEAST_SQNR_DB.get(trip.name)) is not None:
        assert sqnr_db(trip.y, answered) > least
    else:
        step = np.diff(np.unique(trip.y)).min()
        assert np.abs(trip.y - answered).max() < 1.5 * step
        assert (np.abs(trip.y - answered) < step / 2).mean() > 0.9, "rounding fell the other way in a few"


def test_it_is_read_and_answers_as_the_tool_does(trip: RoundTrip) -> None:
    check_quantized(trip.exported)
    assert_answers(trip, answers(trip.exported, trip.x, in_integers=False))


def test_every_product_is_quantized_once_it_is_exported(trip: RoundTrip) -> None:
    facts = facts_from_model(trip.exported, Path("exported"))
    assert (facts.num_quantizable, facts.num_quantized) == (NUM_PRODUCTS, NUM_PRODUCTS)


def test_for_tensorrt_each_scale_and_each_answer_stays(trip: RoundTrip) -> None:
    built = symmetric_from_quantized(trip.exported)
    assert built.coarsened == []
    check_taken_by_tensorrt(built.model)
    assert scales(built.model).keys() == scales(trip.exported).keys(), "byte for byte"
    assert scales(built.model).total() == scales(trip.exported).total() + built.num_integer_operators
    written, read = (answers(model, trip.x, in_integers=False) for model in (trip.exported, built.model))
    np.testing.assert_array_equal(read, written)


def test_tensorrt_for_rtx_multiplies_integers_in_every_product(trip: RoundTrip, tmp_path: Path) -> None:
    if reason := tensorrt_rtx.why_not_build():
        pytest.skip(reason)
    onnx.save(symmetric_from_quantized(trip.exported).model, tmp_path / "placed.onnx")
    low, mid, high = ((size, *trip.x.shape[1:]) for size in (1, 4, 16))
    options = BuildOptions("int8", {"x": ShapeRange(low, mid, high)})
    record = tensorrt_rtx.build(tmp_path / "placed.onnx", tmp_path / "plan", options)
    assert (record.num_int8, record.num_quantizable) == (NUM_PRODUCTS, NUM_PRODUCTS)


def test_what_the_old_exporter_of_torch_writes_between_q_and_dq_is_left_out(trip: RoundTrip) -> None:
    came, exported = ({node.op_type for node in model.graph.node} for model in (trip.came, trip.exported))
    written = {"Cast", "ConstantOfShape", "Identity"}
    assert written <= came or trip.name != "fx_qat", "the file has what this is about"
    assert not written & exported


def test_the_files_are_small() -> None:
    assert all(file.stat().st_size < 50 * 1024 for file in FOLDER.iterdir() if file.suffix in (".onnx", ".npz"))
