"""onnx's own tests of every operator, 1,884 in its wheel, through export, FP16 and both placements of INT8.

What ONNX Runtime runs must answer the same after `export`, near after FP16 and INT8, or be refused in a sentence of its
own. What is refused stands in the tables below, and nothing else may be.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from calibration.errors import DataError, ModelError
from calibration.graph.editing import named
from calibration.graph.watched_outputs import watch_tensors, watchable
from calibration.histogram.histogram import histogram_from_values
from calibration.precision.fp16 import fp16_from_onnx, nodes_beyond_fp16
from calibration.precision.placement import PlacementOptions, PlacementTarget
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.span import Span
from pipeline.artifact import OnnxModel
from pipeline.errors import StageError
from pipeline.stages.export import Export

Array = npt.NDArray[Any]

RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
    "Dropout",
)
LEAST_DB = {"fp16": 40.0, "tensorrt": 12.0, "onnxruntime": 12.0}
"""INT8 ranges are of one sample, and of random numbers."""
LEAST_TESTS = {"export": 1490, "fp16": 1170, "tensorrt": 1170, "onnxruntime": 1170}

REFUSED = {
    "export": {
        # Its answers depend on the batch; no pass may keep the mode and fold it.
        "test_batchnorm_example_training_mode": "is in training mode",
        "test_batchnorm_epsilon_training_mode": "is in training mode",
        # onnx's converter drops the batch that Scan had in opset 8.
        "test_scan_sum": "is a Scan of opset 8, which has a batch",
    },
    "fp16": {},
    # They are made of QuantizeLinear already.
    "tensorrt": dict.fromkeys(
        [f"test_dynamicquantizelinear_{kind}expanded" for kind in ("", "max_adjusted_", "min_adjusted_")],
        "has Q/DQ nodes already",
    ),
}
REFUSED["onnxruntime"] = REFUSED["tensorrt"]
FAR = {
    # A masked value of 1000 is in the range, which is all that TensorRT's INT8 has for the value beside it, of 1.
    "tensorrt": {"test_attention_4d_softcap_neginf_mask_poison_expanded"},
}


@dataclass
class Exported:
    """A test whose answers export keeps."""

    path: Path
    feeds: list[Array]
    answers: list[Any]

    @cached_property
    def model(self) -> onnx.ModelProto:
        """With names."""
        return named(onnx.load(self.path))

    @cached_property
    def spans(self) -> dict[str, Span]:
        """What calibrating on the one sample finds, by min-max."""
        watched = watch_tensors(self.model, watchable(self.model))
        inputs = dict(zip((value.name for value in watched.graph.input), self.feeds))
        values = run(watched.SerializeToString(), self.feeds)
        tensors = inputs | dict(zip((value.name for value in watched.graph.output), values))
        spans = {}
        for name, array in tensors.items():
            if isinstance(array, np.ndarray) and array.dtype == np.float32:
                seen = histogram_from_values(array[~np.isnan(array)], name)
                spans[name] = Span(seen.amax, seen.min, seen.max, is_finite=not seen.num_infinite)
        return spans


@dataclass
class Outcome:
    """What became of all tests."""

    exported: dict[str, Exported]
    refused: dict[str, str]
    differing: list[str]


def run(model: Path | bytes, feeds: list[Array]) -> list[Any]:
    """As written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    answers: list[Any] = session.run(None, dict(zip(names, feeds)))
    return answers


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """All tests that ONNX Runtime runs, exported."""
    folder, outcome = tmp_path_factory.mktemp("suite"), Outcome({}, {}, [])
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    onnxruntime.set_default_logger_severity(4)
    for test in _tests():
        feeds = list(test.data_sets[0][0])
        if any(not isinstance(feed, np.ndarray) for feed in feeds):
            continue
        source = folder / f"{test.name}.onnx"
        onnx.save(test.model, source)
        try:
            expected = run(source, feeds)
        except Exception:  # noqa: BLE001  # ONNX Runtime lacks the operator; its errors are of many kinds.
            continue
        out = folder / test.name
        out.mkdir()
        try:
            path = Export()(out, OnnxModel(source)).path
            if not same(expected, run(path, feeds)) and not any(n.op_type in RANDOM for n in test.model.graph.node):
                outcome.differing.append(test.name)
            outcome.exported[test.name] = Exported(path, feeds, expected)
        except (ModelError, StageError) as error:
            outcome.refused[test.name] = str(error)
    yield outcome
    logging.disable(previous)


def _tests() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of numpy, about the infinities of some of them.
        from onnx.backend.test.loader import load_model_tests

        return [test for test in load_model_tests(kind="node") if test.model is not None]


def same(expected: list[Any], found: list[Any]) -> bool:
    """Equal but for the last digits."""
    return len(expected) == len(found) and all(map(_same, expected, found))


def _same(expected: Any, found: Any) -> bool:
    if not isinstance(expected, np.ndarray):
        return True
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return False
    if expected.dtype.kind not in "fc":
        return bool(expected.dtype.kind not in "iub" or np.array_equal(expected, found))
    return bool(np.allclose(expected, found, rtol=1e-3, atol=1e-5, equal_nan=True))


def unlike(refused: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """What is refused and should not be, what should be and is not, and what is in other words."""
    wrong = [f"{name}: {words}" for name, words in refused.items() if expected.get(name, "\0") not in words]
    return wrong + [f"{name} is not refused any more" for name in expected.keys() - refused.keys()]


def test_export_keeps_the_answers(suite: Outcome) -> None:
    assert suite.differing == []
    assert unlike(suite.refused, REFUSED["export"]) == []
    assert len(suite.exported) >= LEAST_TESTS["export"]


@pytest.mark.parametrize("precision", ["fp16", "tensorrt", "onnxruntime"])
def test_a_reduced_precision_keeps_near(suite: Outcome, precision: str) -> None:
    far, refused, num_tests = set(), {}, 0
    for name, each in suite.exported.items():
        if not any(feed.dtype == np.float32 for feed in each.feeds):
            continue
        try:
            reduced = _reduced(each, precision)
        except (ModelError, DataError) as error:
            refused[name] = str(error)
            continue
        if not _nearness_db(each.answers, run(reduced.SerializeToString(), each.feeds)) >= LEAST_DB[precision]:
            far.add(name)
        num_tests += 1
    assert far == FAR.get(precision, set())
    assert unlike(refused, REFUSED[precision]) == []
    assert num_tests >= LEAST_TESTS[precision]


def _reduced(each: Exported, precision: str) -> onnx.ModelProto:
    if precision == "fp16":
        return fp16_from_onnx(each.model, keep_fp32=set(nodes_beyond_fp16(each.model, each.spans)))
    target: PlacementTarget = "tensorrt" if precision == "tensorrt" else "onnxruntime"
    return qdq_from_onnx(each.model, each.spans, PlacementOptions(target, (), "u8s8")).model


def _nearness_db(expected: list[Any], found: list[Any]) -> float:
    """The lowest SQNR of the outputs; -inf where shapes, types or infinities differ."""
    ratios = [np.inf]
    for want, have in zip(expected, found, strict=True):
        if not isinstance(want, np.ndarray):
            continue
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            return -np.inf
        if want.dtype.kind == "f" and want.size:
            finite = np.isfinite(want)
            if (finite != np.isfinite(have)).any():
                return -np.inf
            exact, near = want[finite].astype(np.float64), have[finite].astype(np.float64)
            noise = float(np.square(exact - near).sum())
            if noise > 0:
                ratios.append(10 * np.log10(max(float(np.square(exact).sum()), 1e-30) / noise))
    return float(min(ratios))
