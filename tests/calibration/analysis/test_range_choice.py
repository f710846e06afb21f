"""The race of the readings: who wins, on how many samples, and what is compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from calibration.analysis.adjustable import AdjustableNetwork
from calibration.analysis.range_choice import (
    CHOICE_FILE,
    LEAST_SAMPLES,
    ROUNDS,
    CandidateResult,
    PlacementChoice,
    RangeChoice,
    candidates,
    choice_from_folder,
    most_samples,
    race,
    sample_sqnr_db,
    student_t,
    write_choice,
)
from calibration.analysis.rounding import Int8Inputs
from calibration.arrays import Floats
from calibration.data.source import spread_order
from calibration.errors import DataError
from calibration.graph.answers import answer_tensors
from calibration.histogram.accumulate import accumulator
from calibration.precision.placement import PlacementOptions, PlacementTarget
from calibration.ranges.ranges import (
    METHODS,
    Origin,
    RangesRecord,
    methods_of_tensors,
    ranges_from_histograms,
    spans_from_ranges,
)
from engines.backends import reference

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,4] x) => (float[N,3] scores, int64[N,1] best)
<float[4,8] first, float[8,3] last> {
  hidden = MatMul (x, first)
  active = Relu (hidden)
  logits = MatMul (active, last)
  flat = Identity (logits)
  scores = Softmax <axis = 1> (flat)
  best = ArgMax <axis = 1> (logits)
}
"""


def model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(NETWORK)
    random = np.random.default_rng(0)
    for name, shape in (("first", (4, 8)), ("last", (8, 3))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    return onnx.shape_inference.infer_shapes(proto)


def ranges_of(tensors: dict[str, Floats]) -> RangesRecord:
    histograms = {}
    for name, values in tensors.items():
        adding = accumulator()
        adding.add(values.astype(np.float32), name)
        histograms[name] = adding.histogram()
    return ranges_from_histograms(histograms, "entropy", 99.99, Origin("", "", 1))


def constant(*ratios: float) -> object:
    def ratios_of(index: int, samples: range) -> Floats:
        noise = np.random.default_rng(0).normal(size=ROUNDS[-1])[samples.start : samples.stop]
        return np.asarray(ratios[index] + noise)

    return ratios_of


@pytest.mark.parametrize(
    ("ratios", "winner"),
    [((30.0, 30.2, 10.0), 0), ((30.0, 35.0, 31.0), 1), ((14.0, 23.0, 23.1), 2), ((5.0,), 0), ((30.0, 30.0), 0)],
)
def test_entropy_wins_unless_another_is_clearly_better(ratios: tuple[float, ...], winner: int) -> None:
    end = race(len(ratios), ROUNDS[-1], constant(*ratios))  # type: ignore[arg-type]
    assert end.winner == winner


def test_a_race_that_is_clear_takes_few_samples_and_one_that_is_not_takes_all() -> None:
    clear = race(3, ROUNDS[-1], constant(30.0, 20.0, 10.0))  # type: ignore[arg-type]
    assert [len(ratios) for ratios in clear.ratios] == [4, 4, 4]

    def noisy(index: int, samples: range) -> Floats:
        return np.array([20.0 + 5 * index * (-1) ** i for i in samples])

    assert [len(ratios) for ratios in race(2, ROUNDS[-1], noisy).ratios] == [ROUNDS[-1]] * 2


def test_one_that_can_no_longer_win_runs_no_further() -> None:
    """The second is as good as the first, which is known after four samples; whether the third is better is not."""

    def ratios_of(index: int, samples: range) -> Floats:
        return np.array([20.0 + (0.01 * index if index < 2 else 3.0 * (-1) ** i) for i in samples])

    assert [len(ratios) for ratios in race(3, ROUNDS[-1], ratios_of).ratios] == [ROUNDS[-1], 4, ROUNDS[-1]]


def test_errors_are_student_s_of_as_many_samples() -> None:
    expected = [stats.t.ppf(0.975, num - 1) for num in (*range(2, LEAST_SAMPLES + 1), *ROUNDS[4:])]
    assert [student_t(num) for num in (*range(2, LEAST_SAMPLES + 1), *ROUNDS[4:])] == pytest.approx(expected, abs=0.006)
    assert all(student_t(num) >= stats.t.ppf(0.975, num - 1) - 0.006 for num in range(2, ROUNDS[-1] + 1))


@pytest.mark.parametrize(("num", "most"), [(1, 16), (128, 16), (256, 32), (300, 37), (1000, 64)])
def test_a_race_takes_a_share_of_the_samples(num: int, most: int) -> None:
    assert most_samples(num) == most


def test_a_race_goes_on_until_what_would_win_is_known() -> None:
    """The other one leads by 3 dB, with a standard deviation of 3 dB: four samples tell nothing."""
    random, num_lost = np.random.default_rng(0), 0
    for _ in range(300):
        differences = random.normal(3.0, 3.0, ROUNDS[-1])
        ratios = np.array([np.full(ROUNDS[-1], 20.0), 20.0 + differences])
        end = race(2, ROUNDS[-1], lambda index, which, ratios=ratios: ratios[index, which.start : which.stop])  # type: ignore[misc]
        num_lost += end.winner == 0
    assert num_lost <= 15


@pytest.mark.parametrize(("lead", "winner"), [(0.5, 1), (0.2, 0)])
def test_who_leads_when_the_samples_run_out_is_the_better_guess(lead: float, winner: int) -> None:
    """Differences of ``lead`` +- 3 dB: on 64 samples a lead of 0.5 dB is 1.3 standard errors."""

    def ratios_of(index: int, samples: range) -> Floats:
        return np.array([20.0 + index * (lead + 3.0 * (-1) ** i) for i in samples])

    end = race(2, ROUNDS[-1], ratios_of)
    assert len(end.ratios[0]) == ROUNDS[-1]
    assert end.winner == winner


def test_one_sample_overrules_entropy_by_a_wide_margin_only() -> None:
    assert race(2, 1, lambda index, _: np.array([20.0 + index])).winner == 0
    assert race(2, 1, lambda index, _: np.array([20.0 + 10 * index])).winner == 1


@given(st.integers(1, ROUNDS[-1]))
def test_every_sample_is_run_once_and_those_of_a_round_lie_among_all(num: int) -> None:
    order = spread_order(num, ROUNDS)
    assert sorted(order) == list(range(num))
    assert max(order[:4]) >= num - num // 4 - 1


def test_candidates_begin_with_entropy_and_are_distinct() -> None:
    random = np.random.default_rng(0)
    spread = np.concatenate([random.normal(size=20_000), [60.0]])
    racing = candidates(ranges_of({"bell": random.normal(size=20_000), "tail": spread}).tensors)
    assert set(racing[0].methods.values()) == {"entropy"}
    assert {"mse", "percentile", "minmax"} <= {candidate.name for candidate in racing}
    constants = candidates(ranges_of({"zero": np.zeros(9)}).tensors)
    assert [candidate.name for candidate in constants] == ["entropy"]


def test_the_sqnr_leaves_out_what_cannot_be_compared() -> None:
    want = {"a": np.array([3.0, 4.0]), "b": np.zeros(2), "c": np.ones(3)}
    have = {"a": np.array([3.0, 4.5]), "b": np.ones(2), "c": np.ones(4)}
    assert sample_sqnr_db(want, have) == pytest.approx(20.0)
    assert sample_sqnr_db({"b": np.zeros(2)}, {"b": np.ones(2)}) is None
    assert sample_sqnr_db(want, want) == 200.0
    assert sample_sqnr_db({"a": np.ones(2)}, {"a": np.array([np.nan, 1.0])}) == -200.0


def test_answers_are_compared_before_what_squashes_them() -> None:
    assert answer_tensors(model()) == ["logits"]


DETECTOR = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1,1,6] x, float[1,6,4] y) => (float[K,4] boxes, float[K] scores, float[1,6,4] all_boxes) {
  probable = Sigmoid (x)
  all_boxes = Relu (y)
  picked = NonMaxSuppression (all_boxes, probable)
  column = Constant <value = int64[1] {2}> ()
  places = Gather <axis = 1> (picked, column)
  flat_places = Squeeze <axes = [1]> (places)
  flat_boxes = Squeeze (all_boxes)
  flat_scores = Squeeze (probable)
  boxes = Gather <axis = 0> (flat_boxes, flat_places)
  scores = Gather <axis = 0> (flat_scores, flat_places)
}
"""


def test_what_suppression_chose_is_compared_before_it() -> None:
    """After it, another number of rows is no difference that could be measured."""
    proto = onnx.parser.parse_model(DETECTOR.replace(" <axes = [1]>", ""))
    assert answer_tensors(proto) == ["all_boxes", "x"]


@pytest.mark.parametrize("inputs", ["drawn", "integers"])
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_one_network_serves_all_ranges(target: PlacementTarget, inputs: Int8Inputs, tmp_path: Path) -> None:
    proto = model()
    random = np.random.default_rng(1)
    x = random.normal(size=(64, 4)).astype(np.float32)
    names = ("x", "hidden", "active", "logits", "flat", "scores")
    hidden = x @ onnx.numpy_helper.to_array(proto.graph.initializer[0])
    logits = np.maximum(hidden, 0) @ onnx.numpy_helper.to_array(proto.graph.initializer[1])
    values = dict(zip(names, (x, hidden, np.maximum(hidden, 0), logits, logits, np.ones(3) / 3)))
    ranges = ranges_of(values)
    network = AdjustableNetwork(proto, PlacementOptions(target), spans_from_ranges(ranges), inputs=inputs)
    assert network.num_tensors
    path = tmp_path / "model.onnx"
    onnx.save(network.model, path)
    narrow = ranges.read_by("auto", {})
    spans = {
        name: type(span)(span.amax / 8, span.min / 8, span.max / 8) for name, span in spans_from_ranges(narrow).items()
    }
    with reference.load(path, num_threads=1) as runner:
        wide, clipped = (runner.infer({"x": x, **network.feed(each)}) for each in (spans_from_ranges(ranges), spans))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.abs(wide["scores"] - expected).max() < 0.05
    assert np.abs(clipped["scores"] - expected).max() > 0.1


def test_a_choice_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert choice_from_folder(tmp_path) is None
    results = (CandidateResult("entropy", 12.0, 8, 0), CandidateResult("mse", 19.0, 8, 85))
    by_mse, by_entropy = (PlacementChoice("tensorrt", name, results) for name in ("mse", "entropy"))
    choice = RangeChoice(("logits",), (by_mse,))
    write_choice(choice, tmp_path)
    read = choice_from_folder(tmp_path)
    assert read is not None
    assert read.sentence() == choice.sentence()
    assert "19.0 dB on 8 calibration samples, by entropy they would have 12.0 dB" in read.sentence()
    assert read == choice
    assert RangeChoice((), (by_entropy,)).sentence().startswith("ranges by entropy: no other")
    other = replace(by_entropy, target="onnxruntime")
    said = RangeChoice((), (by_mse, other)).sentence()
    assert said.startswith("for tensorrt, ranges by mse: ")
    assert "; for onnxruntime, ranges by entropy: no other" in said
    for damaged in ("{}", (tmp_path / CHOICE_FILE).read_text().replace('"mse"', '"max"', 1)):
        (tmp_path / CHOICE_FILE).write_text(damaged)
        with pytest.raises(DataError, match="is damaged"):
            choice_from_folder(tmp_path)


def test_a_placement_reads_tensors_in_its_own_way(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {"a": random.normal(size=9000), "b": random.exponential(size=9000)}
    ranges = ranges_of(tensors).read_by(
        "auto", {"a": "mse"}, {"tensorrt": {"a": "mse"}, "onnxruntime": {"a": "mse", "b": "minmax"}}
    )
    assert {name: dict(tensor.method_for) for name, tensor in ranges.tensors.items()} == {
        "a": {}, "b": {"onnxruntime": "minmax"},
    }  # fmt: skip
    assert ranges.read_for("tensorrt") == ranges
    assert ranges.read_for("onnxruntime").tensors["b"].amax == ranges.tensors["b"].amax_by_method["minmax"]
    assert methods_of_tensors(ranges.read_for("onnxruntime")) == {"a": "mse", "b": "minmax"}
    by_name = ranges.read_by("entropy", {})
    assert not any(tensor.method_for for tensor in by_name.tensors.values())
    assert by_name.read_for("onnxruntime") == by_name


def test_ranges_are_read_by_another_method_without_histograms() -> None:
    random = np.random.default_rng(0)
    tensors = {"a": random.normal(size=9000), "b": random.exponential(size=9000)}
    ranges = ranges_of(tensors)
    for method in METHODS:
        by_method = ranges.read_by(method, dict.fromkeys(tensors, method))
        assert {tensor.method for tensor in by_method.tensors.values()} == {method}
        assert all(tensor.amax == tensor.amax_by_method[method] for tensor in by_method.tensors.values())
    assert ranges.read_by("entropy", {}) == ranges
