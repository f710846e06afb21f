"""Streaming batches into histograms; which tensors can be watched, and the model with them as outputs."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx.reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.arrays import AnyArray
from calibration.errors import DataError, ModelError
from calibration.graph.watched_outputs import watch_tensors, watchable
from calibration.histogram.collect import collect
from calibration.histogram.histogram import histogram_from_values

BRANCHES = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,3] x, int64[N] ids) => (float[N,3] y, int64[2] sizes) <float[3] w = {1, 2, 3}, float[3] v = {1, 1, 1}> {
        constant = Add (w, v)
        scaled = Mul (x, constant)
        sizes = Shape (scaled)
        mean, mask = Dropout (scaled)
        y = Relu (mean)
    }"""
)


def relu(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    return {"y": np.maximum(batch["x"], np.float32(0))}


def batches_of(samples: npt.NDArray[np.float32], size: int) -> Iterator[dict[str, AnyArray]]:
    for begin in range(0, len(samples), size):
        yield {"x": samples[begin : begin + size]}


def values_of(model: onnx.ModelProto, feed: Mapping[str, AnyArray]) -> list[npt.NDArray[np.float64]]:
    """The outputs by onnx's own evaluator."""
    return [np.asarray(value) for value in onnx.reference.ReferenceEvaluator(model).run(None, dict(feed))]


class TestCollect:
    def test_inputs_and_watched_tensors(self) -> None:
        samples = np.array([[-1.0], [2.0], [-3.0]], np.float32)
        found = collect(relu, batches_of(samples, 2))
        assert list(found) == ["x", "y"]
        assert (found["x"].min, found["x"].max, found["x"].num_values, found["x"].num_zeros) == (-3.0, 2.0, 3, 0)
        assert (found["y"].min, found["y"].max, found["y"].num_values, found["y"].num_zeros) == (0.0, 2.0, 3, 2)

    @given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
    @settings(max_examples=30)
    def test_the_batch_size_does_not_show(self, num: int, size: int, seed: int) -> None:
        samples = np.random.default_rng(seed).lognormal(sigma=3, size=(num, 5)).astype(np.float32)
        found = collect(relu, batches_of(samples, size))
        at_once = histogram_from_values(samples, "x")
        for name in ("x", "y"):
            assert found[name].counts.tobytes() == at_once.counts.tobytes()
            assert (found[name].exponent, found[name].max) == (at_once.exponent, at_once.max)

    def test_an_input_that_the_runner_returns_counts_once(self) -> None:
        found = collect(lambda batch: dict(batch), batches_of(np.ones((4, 2), np.float32), 2))
        assert found["x"].num_values == 8

    def test_whole_numbers_are_not_watched(self) -> None:
        found = collect(lambda batch: {"n": np.array([3])}, [{"ids": np.array([1, 2])}])
        assert found == {}

    def test_half_precision_is_watched(self) -> None:
        found = collect(lambda batch: {"h": np.array([0.5], np.float16)}, [{"ids": np.array([1])}])
        assert found["h"].max == 0.5

    def test_progress_is_told_in_samples(self) -> None:
        told: list[int] = []
        collect(relu, batches_of(np.ones((5, 1), np.float32), 2), on_batch=told.append)
        assert told == [2, 4, 5]

    def test_one_batch_lives_at_a_time(self) -> None:
        alive: list[weakref.ref[AnyArray]] = []

        def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
            gc.collect()
            assert not any(ref() is not None for ref in alive)
            values = np.maximum(batch["x"], np.float32(0))
            alive.append(weakref.ref(values))
            return {"y": values}

        collect(run, batches_of(np.ones((20, 1), np.float32), 1))
        assert len(alive) == 20

    def test_a_batch_is_gone_before_the_next_is_made(self) -> None:
        alive: list[weakref.ref[AnyArray]] = []

        def batches() -> Iterator[dict[str, AnyArray]]:
            for _ in range(20):
                assert not any(ref() is not None for ref in alive)
                values = np.ones((1, 3), np.float32)
                alive.append(weakref.ref(values))
                handed: list[dict[str, AnyArray]] = [{"x": values}]
                del values
                yield handed.pop()  # Keeps no reference of its own.

        assert collect(relu, batches())["x"].num_values == 60

    @pytest.mark.parametrize("batches", [[], [{"x": np.zeros((0, 3), np.float32)}]], ids=["no batch", "empty batch"])
    def test_without_samples_there_are_no_ranges(self, batches: list[dict[str, AnyArray]]) -> None:
        with pytest.raises(DataError, match=r"no calibration samples, .*never made up; give representative data"):
            collect(relu, batches)

    def test_infinities_are_left_out_with_a_line(self, caplog: pytest.LogCaptureFixture) -> None:
        def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
            return {"mask": np.where(batch["x"] == 3, np.float32(-np.inf), batch["x"])}

        samples = np.arange(6, dtype=np.float32).reshape(6, 1)
        found = collect(run, batches_of(samples, 2))["mask"]
        assert (found.num_infinite, found.num_values, found.min, found.max) == (1, 5, 0.0, 5.0)
        (line,) = (record.getMessage() for record in caplog.records)
        assert line.endswith("in 1 of 2 tensors; of the first of them, 'mask', 1 of 6 values")

    def test_a_bad_value_names_tensor_and_samples(self) -> None:
        def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
            return {"log": np.where(batch["x"] == 3, np.float32(np.nan), batch["x"])}

        samples = np.arange(6, dtype=np.float32).reshape(6, 1)
        with pytest.raises(DataError, match=r"tensor 'log' on samples 2 to 3: 1 of 2 values are NaN"):
            collect(run, batches_of(samples, 2))

    def test_a_tensor_without_values_has_a_histogram_of_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
            x = np.asarray(batch["x"], np.float32)
            big = x[x > 2]
            return {"big": big, "huge": big[:0]}

        with caplog.at_level(logging.WARNING):
            found = collect(run, batches_of(np.array([[1], [3], [2]], np.float32), 1))
        assert (found["big"].num_values, found["big"].min, found["big"].max) == (1, 3.0, 3.0)
        assert (found["huge"].num_values, found["huge"].amax) == (0, 0.0)
        assert [record.getMessage() for record in caplog.records] == [
            "tensor 'huge' is empty on every sample, so it has no range"
        ]


class TestWatchable:
    def test_what_moves_in_order_and_nothing_constant(self) -> None:
        assert watchable(BRANCHES) == ["x", "scaled", "mean", "y"]

    def test_an_initializer_that_is_also_an_input_is_constant(self) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { z = Neg (w) y = Add (x, z) }"""
        )
        assert watchable(model) == ["x", "y"]

    def test_random_numbers_and_all_that_follows_move(self) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[2] x) => (float[2] y) { noise = RandomNormal <shape = [2]> () n = Neg (noise) y = Add (x, n) }"""
        )
        assert watchable(model) == ["x", "noise", "n", "y"]

    def test_what_a_branch_reads_from_outside_counts(self) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[2] x) => (float[2] y) <bool yes = {1}, bool sure = {1}> {
                h = Neg (x)
                y = If (yes) <
                    then_branch = t () => (float[2] a) { a = If (sure) <
                        then_branch = tt () => (float[2] b) { b = Relu (h) },
                        else_branch = te () => (float[2] c) { c = Constant <value_floats = [1.0, 2.0]> () }> },
                    else_branch = e () => (float[2] d) { d = Constant <value_floats = [1.0, 2.0]> () }>
            }"""
        )
        assert watchable(model) == ["x", "h", "y"]

    def test_other_precisions_are_left_out(self) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[2] x) => (float[2] y) { h = Cast <to = 10> (x) r = Relu (h) y = Cast <to = 1> (r) }"""
        )
        assert watchable(model) == ["x", "y"]


class TestWatchTensors:
    def test_all_values_come_out_typed_and_unchanged(self) -> None:
        watched = watch_tensors(BRANCHES, watchable(BRANCHES))
        onnx.checker.check_model(watched, full_check=True)
        assert [value.name for value in watched.graph.output] == ["y", "sizes", "scaled", "mean"]
        samples = np.array([[1, -1, 2]], np.float32)
        feed = {"x": samples, "ids": np.array([0])}
        y, sizes, scaled, _ = values_of(watched, feed)
        assert scaled.tolist() == [[2, -3, 8]]
        assert y.tolist() == [[2, 0, 8]]
        assert sizes.tolist() == [1, 3]

    def test_the_model_itself_stays(self) -> None:
        before = BRANCHES.SerializeToString(deterministic=True)
        watch_tensors(BRANCHES, ["scaled"])
        assert BRANCHES.SerializeToString(deterministic=True) == before

    def test_inputs_outputs_and_doubles_add_nothing(self) -> None:
        watched = watch_tensors(BRANCHES, ["x", "y", "scaled", "scaled"])
        assert [value.name for value in watched.graph.output] == ["y", "sizes", "scaled"]

    def test_a_tensor_of_unknown_rank_comes_out_flat(self) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[2,2] x, int64[M] to) => (float[2,2] y) {
                back = Constant <value_ints = [2, 2]> ()
                free = Reshape (x, to)
                double = Add (free, free)
                y = Reshape (double, back)
            }"""
        )
        watched = watch_tensors(model, watchable(model))
        onnx.checker.check_model(watched, full_check=True)
        assert [value.name for value in watched.graph.output] == ["y", "free", "double"]
        feed = {"x": np.array([[1, 2], [3, 4]], np.float32), "to": np.array([1, 4, 1])}
        y, free, double = values_of(watched, feed)
        assert y.tolist() == [[2, 4], [6, 8]]
        assert (free.tolist(), double.tolist()) == ([1, 2, 3, 4], [2, 4, 6, 8])

    def test_an_unknown_name_offers_the_nearest(self) -> None:
        with pytest.raises(ModelError, match=r"'scale': is computed by no node .*; the nearest is 'scaled'"):
            watch_tensors(BRANCHES, ["scale"])

    def test_a_constant_input_is_no_tensor_to_watch(self) -> None:
        with pytest.raises(ModelError, match="'w': is computed by no node"):
            watch_tensors(BRANCHES, ["w"])

    def test_a_tensor_without_a_type_says_so(self) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
            g (float[2] x) => (float[2] y) { h = mine.Strange (x) y = mine.Strange (h) }"""
        )
        assert watchable(model) == ["x", "y"]
        with pytest.raises(ModelError, match=r"'h': its type is not known .*value_info"):
            watch_tensors(model, ["h"])

    def test_watched_values_become_histograms(self) -> None:
        watched = watch_tensors(BRANCHES, watchable(BRANCHES))
        names = [value.name for value in watched.graph.output]

        def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
            return dict(zip(names, values_of(watched, batch)))

        found = collect(run, [{"x": np.array([[1, -1, 2]], np.float32), "ids": np.array([0])}])
        assert {name: (h.min, h.max) for name, h in found.items()} == {
            "x": (-1, 2),
            "y": (0, 8),
            "scaled": (-3, 8),
            "mean": (-3, 8),
        }
