"""Which tensors are watched, and that all that is wanted of the others follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from calibration.arrays import AnyArray
from calibration.graph.editing import named
from calibration.graph.watched_outputs import watch_tensors, watchable
from calibration.histogram.collect import collect
from calibration.histogram.histogram import Histogram
from calibration.precision.fp16 import nodes_beyond_fp16
from calibration.precision.placement import PlacementOptions
from calibration.precision.qdq import qdq_from_onnx
from calibration.precision.watch import TARGETS, Watch, watched_tensors
from calibration.precision.weights import mean_axes
from calibration.ranges.means import SampleMeans, channel_means
from calibration.ranges.span import Span

NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,6,6,16] x) => (float[N,4] y) <int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, float six = {6}, float zero = {0}> {
    t = Transpose <perm = [0, 3, 1, 2]> (x)
    p = Pad (t, pads)
    c1 = Conv (p, w1, b)
    r1 = Clip (c1, zero, six)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b)
    s = Add (c2, r1)
    r2 = Relu (s)
    c3 = Conv <pads = [1, 1, 1, 1]> (r2, w1, b)
    gate = Sigmoid (c3)
    swish = Mul (c3, gate)
    pool = GlobalAveragePool (swish)
    flat = Flatten (pool)
    logits = MatMul (flat, dense)
    scores = Add (logits, bias)
    y = Softmax (scores)
}"""


def network(seed: int = 0, scale: float = 0.1) -> onnx.ModelProto:
    random = np.random.default_rng(seed)
    model = onnx.parser.parse_model(NETWORK)
    shapes = {"w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3), "b": (16,), "dense": (16, 4), "bias": (4,)}
    for name, shape in shapes.items():
        values = (random.standard_normal(shape) * scale).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def samples(seed: int, num: int = 3, scale: float = 1.0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((num, 6, 6, 16)) * scale).astype(np.float32)


def found_on(model: onnx.ModelProto, names: tuple[str, ...], x: npt.NDArray[np.float32]) -> dict[str, Histogram]:
    session = ReferenceEvaluator(watch_tensors(model, names))

    def run(feed: Mapping[str, AnyArray]) -> Mapping[str, AnyArray]:
        with np.errstate(over="ignore", invalid="ignore"):  # onnx's Sigmoid.
            return dict(zip(session.output_names, session.run(None, dict(feed))))

    def batches() -> Iterator[dict[str, AnyArray]]:
        for row in range(len(x)):
            yield {"x": x[row : row + 1]}

    return collect(run, batches())


def spans_of(histograms: Mapping[str, Histogram]) -> dict[str, Span]:
    return {name: Span(h.amax, h.min, h.max) for name, h in histograms.items()}


def same(a: Histogram, b: Histogram) -> bool:
    figures = [(h.exponent, h.min, h.max, h.num_zeros) for h in (a, b)]
    return figures[0] == figures[1] and np.array_equal(a.counts, b.counts)


def test_what_is_watched_for_each_purpose() -> None:
    model = network()
    possible = watchable(model)
    found = {watch: set(watched_tensors(model, watch, possible).names) for watch in (*TARGETS, "all")}
    assert found["all"] == set(possible)
    assert found["tensorrt"] == {"x", "r1", "r2", "swish", "pool", "logits", "scores", "y"}
    assert found["onnxruntime"] == {"x", "r1", "c2", "r2", "c3", "gate", "swish", "pool", "logits", "scores", "y"}
    assert found["placements"] == found["tensorrt"] | found["onnxruntime"]


@pytest.mark.parametrize("watch", [*TARGETS, "all"])
def test_completed_histograms_are_those_of_the_tensors_themselves(watch: Watch) -> None:
    model, x = network(), samples(0)
    everything = found_on(model, tuple(watchable(model)), x)
    watched = watched_tensors(model, watch, watchable(model))
    completed = watched.completed(found_on(model, watched.names, x))
    assert {"t", "p", "flat"} <= set(completed)
    for name, histogram in completed.items():
        assert same(histogram, everything[name]), name


@pytest.mark.parametrize("excluded", [(), ("Conv",), ("MatMul",), ("Add", "Mul"), ("Clip",)])
@pytest.mark.parametrize("watch", ["tensorrt", "onnxruntime", "placements"])
def test_models_are_quantized_as_if_everything_had_been_watched(watch: Watch, excluded: tuple[str, ...]) -> None:
    model, x = network(), samples(1)
    everything = spans_of(found_on(model, tuple(watchable(model)), x))
    watched = watched_tensors(model, watch, watchable(model))
    ours = spans_of(watched.completed(found_on(model, watched.names, x)))
    for target in TARGETS[watch]:
        options = PlacementOptions(target=target, exclude=excluded)
        assert qdq_from_onnx(model, ours, options).model == qdq_from_onnx(model, everything, options).model


@settings(max_examples=12)
@given(
    seed=st.integers(0, 99),
    log_weights=st.integers(-16, 10),
    log_data=st.integers(-16, 12),
    watch=st.sampled_from(sorted(TARGETS)),
)
def test_fp16_is_judged_as_if_everything_had_been_watched(
    seed: int, log_weights: int, log_data: int, watch: Watch
) -> None:
    model, x = named(network(seed, 2.0**log_weights)), samples(seed, 2, 2.0**log_data)
    everything = found_on(model, tuple(watchable(model)), x)
    watched = watched_tensors(model, watch, watchable(model))
    ours = watched.completed(found_on(model, watched.names, x))
    ours |= {name: everything[name] for name in watched.unclear(ours)}  # The second pass.
    assert nodes_beyond_fp16(model, spans_of(ours)) == nodes_beyond_fp16(model, spans_of(everything))


def test_usual_values_need_no_second_pass() -> None:
    model = network()
    for watch in TARGETS:
        watched = watched_tensors(model, watch, watchable(model))
        assert watched.unclear(watched.completed(found_on(model, watched.names, samples(2)))) == []


def test_values_near_the_end_of_fp16_need_one() -> None:
    model = network(scale=3.0)
    watched = watched_tensors(model, "tensorrt", watchable(model))
    unclear = watched.unclear(watched.completed(found_on(model, watched.names, samples(3, scale=200.0))))
    assert "c1" in unclear


@pytest.mark.parametrize(
    ("pad", "follows"),
    [
        ("Pad (t, pads)", True),
        ("Pad (t, pads, zero)", True),
        ("Pad (t, pads, six)", False),
        ('Pad <mode = "edge"> (t, pads)', False),
    ],
)
def test_only_zeros_around_a_tensor_follow_from_it(pad: str, follows: bool) -> None:
    model = onnx.parser.parse_model(NETWORK.replace("Pad (t, pads)", pad))
    model.graph.initializer.extend(network().graph.initializer[3:])
    watched = watched_tensors(model, "tensorrt", watchable(model))
    assert ("p" in watched.following) == follows
    assert ("p" in watched.names) != follows


MOVED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 6, 5, 4] x) => (float[N, 7, 3, 2] y, float[N, 3] z, float[N, 2, 3, 10] o)
<int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 0}, int64[8] channel_pads = {0, 1, 0, 0, 0, 1, 0, 0},
 int64[4] shape = {-1, 4, 1, 1}, int64[2] one = {2, 3}, int64[4] halves = {-1, 2, 6, 10}>
{
    t = Transpose<perm = [0, 3, 1, 2]>(x)
    a = Relu(t)
    p = Pad(a, pads)
    c = Conv<strides = [2, 2]>(p, w)
    y = Relu(c)
    g = GlobalAveragePool(a)
    s = Squeeze(g, one)
    r = Reshape(s, shape)
    e = Conv(r, v)
    f = Flatten(e)
    z = MatMul(f, u)
    b = Pad(a, channel_pads)
    d = Conv(b, q)
    h = Reshape(a, halves)
    o = Conv(h, k)
}"""
WEIGHTS = {"w": (7, 4, 3, 3), "v": (5, 4, 1, 1), "u": (5, 3), "q": (2, 6, 1, 1), "k": (3, 2, 1, 1)}


def test_means_of_what_follows_are_found_in_what_is_watched() -> None:
    model = onnx.parser.parse_model(MOVED)
    random = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(random.standard_normal(shape, np.float32), name))
    model = onnx.shape_inference.infer_shapes(model)
    names = watchable(model)
    watched = watched_tensors(model, "tensorrt", names)
    axes = mean_axes(watched.graph, set(names))
    sources = watched.channel_sources(axes)
    assert {name: source.tensor for name, source in sources.items()} == {"p": "a", "r": "g", "f": "e"}, (
        "not of what adds channels, nor of what halves them"
    )
    evaluator = ReferenceEvaluator(watch_tensors(model, names))
    outputs = [value.name for value in watch_tensors(model, names).graph.output]
    feeds = [{"x": random.standard_normal((1, 6, 5, 4)).astype(np.float32)} for _ in range(3)]

    def run(feed: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        return dict(zip(outputs, evaluator.run(None, dict(feed)), strict=True))

    met = SampleMeans(sources)
    for number, feed in enumerate(feeds):
        met.add(number, {**feed, **run(feed)})
    expected = channel_means(run, feeds, {name: axes[name] for name in sources})
    means = met.means(range(3))
    assert means.keys() == expected.keys()
    for name, values in expected.items():
        assert np.allclose(means[name], values, rtol=1e-6, atol=1e-7), name
