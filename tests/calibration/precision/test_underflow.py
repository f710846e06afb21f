"""What becomes 0 in FP16 before a logarithm, a root or a division stays FP32, as far as calibration shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from calibration.arrays import AnyArray
from calibration.errors import DataError
from calibration.graph.editing import named
from calibration.graph.watched_outputs import watch_tensors, watchable
from calibration.histogram.collect import collect
from calibration.histogram.histogram import Histogram
from calibration.precision.fp16 import fp16_from_onnx, nodes_beyond_fp16
from calibration.precision.watch import watched_tensors
from calibration.ranges.span import Span

Arrays = npt.NDArray[Any]


def model_of(body: str, initializers: str = "float one = {1}", num: int = 4) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    text = f"{head} net (float[N,{num}] x) => (float[N,M] y) <{initializers}> {{ {body} }}"
    return named(onnx.parser.parse_model(text))


def run(model: onnx.ModelProto, x: Arrays) -> Arrays:
    """In numpy, which computes FP16 in FP16."""
    with np.errstate(all="ignore"):
        (answer,) = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(answer)


def spans_on(model: onnx.ModelProto, x: Arrays) -> tuple[dict[str, Span], list[str]]:
    """What calibration finds on these rows, in as many passes as it takes, and the tensors of the second."""
    watched = watched_tensors(model, "placements", watchable(model))

    def histograms_of(names: tuple[str, ...]) -> dict[str, Histogram]:
        session = ReferenceEvaluator(watch_tensors(model, names))
        batches = ({"x": x[row : row + 1]} for row in range(len(x)))

        def answer(feed: Mapping[str, AnyArray]) -> Mapping[str, AnyArray]:
            return dict(zip(session.output_names, session.run(None, dict(feed))))

        return collect(answer, batches)

    found = watched.completed(histograms_of(watched.names))
    unclear = watched.unclear(found)
    if unclear:
        found |= histograms_of(tuple(unclear))
    return {name: Span(h.amax, h.min, h.max) for name, h in found.items()}, unclear


SOFTMAX_LOG = "p = Softmax (x)  y = Log (p)"
SUM_BELOW = "p = Softmax (x)  s = Add (p, eps)  y = Div (one, s)"
NORM = "q = Mul (x, x)  m = ReduceMean <axes = [1]> (q)  v = Add (m, eps)  r = Sqrt (v)  y = Div (x, r)"
EPS9 = "float one = {1}, float eps = {1e-9}"
EPS12 = "float eps = {1e-12}"
CONFIDENT = np.array([[0, 30, 0, 1], [12, 1, -9, 3]], np.float32)
UNSURE = np.array([[0, 1, 0.5, 1], [1, 1, -1, 0.5]], np.float32)
FAINT = np.array([[1e-4, 2e-4, -1e-4, 3e-4], [1, -2, 0.5, 1]], np.float32)


@pytest.mark.parametrize(
    ("body", "initializers", "x", "kept"),
    [
        (SOFTMAX_LOG, EPS9, CONFIDENT, {"Softmax_p", "Log_y"}),
        ("p = Softmax (x)  t = Transpose (p)  u = Transpose (t)  y = Log (u)", EPS9, CONFIDENT,
         {"Softmax_p", "Transpose_t", "Transpose_u", "Log_y"}),
        ("p = Softmax (x)  h = Mul (p, one)  y = Reciprocal (h)", EPS9, CONFIDENT,
         {"Softmax_p", "Mul_h", "Reciprocal_y"}),
        (SUM_BELOW, EPS9, CONFIDENT, {"Softmax_p", "Add_s", "Div_y"}),
        ("p = Softmax (x)  y = Pow (p, half)", "float half = {-0.5}", CONFIDENT, {"Softmax_p", "Pow_y"}),
        (NORM, "float eps = {1e-9}", FAINT, {"Mul_q", "ReduceMean_m", "Add_v", "Sqrt_r", "Div_y"}),
    ],
)  # fmt: skip
def test_what_comes_down_to_0_stays_fp32(body: str, initializers: str, x: Arrays, kept: set[str]) -> None:
    model = model_of(body, initializers)
    expected, plain = run(model, x), run(fp16_from_onnx(model, ()), x)
    assert not np.allclose(plain, expected, rtol=0.05), "this network needs it"
    beyond = nodes_beyond_fp16(model, spans_on(model, x)[0])
    assert set(beyond) == kept
    np.testing.assert_allclose(run(fp16_from_onnx(model, beyond), x), expected, rtol=5e-3)


@pytest.mark.parametrize("body", [SOFTMAX_LOG, "p = Softmax (x)  y = Reciprocal (p)", NORM.replace("eps", "one")])
def test_what_stays_well_above_it_becomes_fp16(body: str) -> None:
    model = model_of(body)
    spans, unclear = spans_on(model, UNSURE)
    assert nodes_beyond_fp16(model, spans) == {}
    assert unclear == [], "no second pass"


@pytest.mark.parametrize("guard", ["v = Add (m, eps)", "v = Max (m, eps)", "v = Clip (m, eps)"])
def test_a_guard_that_is_0_in_fp16_holds_without_small_samples(guard: str) -> None:
    model = model_of(NORM.replace("v = Add (m, eps)", guard), EPS12)
    spans, unclear = spans_on(model, UNSURE)
    beyond = nodes_beyond_fp16(model, spans)
    assert set(beyond) == {f"{guard[4:].split()[0]}_v", "Sqrt_r", "Div_y"}
    assert unclear == []
    nothing = np.zeros((1, 4), np.float32)
    assert np.isnan(run(fp16_from_onnx(model, ()), nothing)).all()
    np.testing.assert_array_equal(run(fp16_from_onnx(model, beyond), nothing), nothing)


def test_a_guard_that_fp16_has_changes_nothing_behind_it() -> None:
    model = model_of(NORM, "float eps = {1e-5}")
    assert set(nodes_beyond_fp16(model, spans_on(model, UNSURE)[0])) == {"Add_v"}, "as before: 1e-5 loses digits"


def test_values_of_both_signs_are_no_evidence() -> None:
    model = model_of("y = Div (one, x)")
    assert nodes_beyond_fp16(model, {"x": Span(1.0, -1.0, 1.0), "y": Span(9.0, -9.0, 9.0)}) == {}


def test_a_constant_below_is_no_tensor() -> None:
    model = model_of("y = Div (x, one)", "float one = {3}")
    assert nodes_beyond_fp16(model, dict.fromkeys("xy", Span(1.0, -1.0, 1.0))) == {}


def test_the_reasons_have_tensor_number_and_reader() -> None:
    model = model_of(SOFTMAX_LOG)
    spans = {"x": Span(30.0, -9.0, 30.0), "p": Span(1.0, 2e-9, 1.0), "y": Span(20.0, -20.0, 0.0)}
    reason = "'p' comes down to 2e-09, which FP16 cannot hold well, and Log 'Log_y' reads it"
    assert nodes_beyond_fp16(model, spans) == {"Softmax_p": reason, "Log_y": reason}
    guarded = model_of(NORM, EPS12)
    assert nodes_beyond_fp16(guarded, spans_on(guarded, UNSURE)[0])["Div_y"] == (
        "its input is kept from 0 by 'eps', which is 0 in FP16"
    )


def test_the_second_pass_sees_what_small_values_are_made_of() -> None:
    model = model_of("a = Abs (x)  b = Mul (a, one)  c = Mul (b, one)  y = Log (c)")
    x = np.array([[1e-7, 1, 2, 3]], np.float32)
    spans, unclear = spans_on(model, x)
    assert {"a", "b"} <= set(spans)
    assert set(unclear) <= {"a", "b"}
    assert set(nodes_beyond_fp16(model, spans)) == {"Abs_a", "Mul_b", "Mul_c", "Log_y"}


def test_ranges_without_the_tensor_are_an_error() -> None:
    model = model_of(SOFTMAX_LOG)
    with pytest.raises(DataError, match="node 'Log_y' has 'p', for which calibration has no range"):
        nodes_beyond_fp16(model, dict.fromkeys("xy", Span(1.0, -1.0, 1.0)))


def test_the_square_inside_a_norm_counts() -> None:
    model = model_of("y = ReduceL2 <axes = [1]> (x)")
    faint = dict.fromkeys("xy", Span(5e-3, 0.0, 5e-3))
    assert "square of 'x' is at most 2.5e-05" in nodes_beyond_fp16(model, faint)["ReduceL2_y"]


def test_a_path_may_be_of_any_length() -> None:
    num = 2000
    steps = " ".join(f"v{n + 1} = Mul (v{n}, one)" for n in range(num))
    model = model_of(f"v0 = Softmax (x)  {steps}  y = Log (v{num})")
    small = Span(1.0, 1e-7, 1.0)
    spans = {"x": Span(16.0, -16.0, 1.0), "y": Span(16.0, -16.0, 0.0)} | {f"v{n}": small for n in range(num + 1)}
    assert len(nodes_beyond_fp16(model, spans)) == num + 2
