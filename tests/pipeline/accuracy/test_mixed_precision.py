"""The fewest layers out of INT8 that a bound needs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.errors import DataError
from calibration.precision.place import NothingIn4Bits
from calibration.precision.placement import PlacementOptions
from calibration.ranges.ranges import spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.ranges.span import Span
from pipeline import flow
from pipeline.accuracy.layer_noise import InputNoise, MeasureLayers, noises_from_file
from pipeline.accuracy.metric_sensitivity import MeasureSensitivity
from pipeline.accuracy.mixed_precision import (
    HeldBound,
    MixPrecision,
    MixtureJudge,
    by_work,
    fewest,
    ranked,
)
from pipeline.accuracy.mixture import MixtureBound, mixture_sentence
from pipeline.artifact import Mixture, OnnxModel, Ranges
from pipeline.command.cli import status_of
from pipeline.errors import ConfigError
from pipeline.plan import read_plan
from pipeline.report.write import mixtures_of
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from tests.calibration.graph.nets import with_arrays

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 8, 8] x) => (float[N, 4] y)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, first)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, loud)
    d = Relu (c)
    e = Conv <pads = [1, 1, 1, 1]> (d, third)
    f = Relu (e)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    y = MatMul (h, last)
}
"""
NO_BOUND = MixtureBound(-math.inf, math.inf)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of four layers; what the third reads has one channel that is a hundred times as large as the others."""
    folder, random = tmp_path_factory.mktemp("mixed"), np.random.default_rng(8)
    shapes = {"first": (16, 16, 3, 3), "loud": (16, 16, 3, 3), "third": (16, 16, 3, 3), "last": (16, 4)}
    arrays = {name: (random.normal(size=shape) / 5).astype(np.float32) for name, shape in shapes.items()}
    arrays["loud"][0] *= 100
    arrays["third"][:, 0] /= 100
    onnx.save(with_arrays(onnx.parser.parse_model(NET), arrays), folder / "net.onnx")
    x = random.normal(size=(24, 16, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=np.arange(24) % 4)
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> OnnxModel:
    return OnnxModel(place / "net.onnx")


@pytest.fixture(scope="module")
def samples(place: Path) -> Samples:
    source = DataSource(str(place / "data.npz"))
    return open_samples(source, input_specs_from_onnx(place / "net.onnx"), Preprocess())


@pytest.fixture(scope="module")
def ranges(place: Path, model: OnnxModel, samples: Samples) -> Ranges:
    return Calibrate(method="minmax")(place, model, samples)


def mixed(out: Path, what: tuple[OnnxModel, Ranges, Samples], bound: MixtureBound) -> Mixture:
    model, ranges, samples = what
    options = PlacementOptions("tensorrt")
    noises = MeasureLayers(options)(out, model, ranges, samples)
    return MixPrecision(options)(out, model, ranges, noises, HeldBound(bound, samples))


def test_the_layer_that_loses_most_is_left_out_and_no_other(
    tmp_path: Path, model: OnnxModel, ranges: Ranges, samples: Samples
) -> None:
    what = model, ranges, samples
    (tmp_path / "a").mkdir()
    without = mixed(tmp_path / "a", what, replace(NO_BOUND, min_sqnr_db=0.0)).read()
    assert without["in_float"] == []
    (point,) = without["points"]
    mixture = mixed(tmp_path, what, replace(NO_BOUND, min_sqnr_db=point["sqnr_db"] + 6)).read()
    assert mixture["in_float"] == ["Conv_e"]
    assert [row["num_in_float"] for row in mixture["points"]] == sorted(
        row["num_in_float"] for row in mixture["points"]
    )
    sentence = mixture_sentence(mixture)
    assert sentence.startswith("mixed precision: 1 node stays in float for SQNR of at least ")
    assert sentence.count(" dB") == 1 + len(mixture["points"])


def test_a_bound_that_nothing_holds_is_one_sentence(
    tmp_path: Path, model: OnnxModel, ranges: Ranges, samples: Samples
) -> None:
    with pytest.raises(ConfigError, match="the plan names no metric; set metric in"):
        mixed(tmp_path, (model, ranges, samples), replace(NO_BOUND, max_metric_drop=0.0))
    with pytest.raises(DataError, match=r"max_metric_drop is measured on calibration samples, which have no labels"):
        mixed(tmp_path, (model, ranges, samples), MixtureBound(-math.inf, 0.0, "top1"))
    sentence = r"no mixture holds SQNR of at least 400 dB: with \d nodes in float and others in INT8 it is an SQNR of "
    with pytest.raises(DataError, match=sentence):
        mixed(tmp_path, (model, ranges, samples), replace(NO_BOUND, min_sqnr_db=400.0))


def test_with_weights_of_4_bits_all_of_them_in_float_is_no_mixture(
    tmp_path: Path, model: OnnxModel, ranges: Ranges, samples: Samples
) -> None:
    options = PlacementOptions("onnxruntime", arithmetic="u8s8", weight_bits=4)
    held = HeldBound(NO_BOUND, samples)
    spans = spans_from_ranges(ranges_from_folder(ranges.path).read_for("onnxruntime"))
    judge = MixtureJudge(MixPrecision(options), onnx.load(model.path), spans, held)
    products = ("Conv_a", "Conv_c", "Conv_e", "MatMul_y")
    assert judge.point(products[:1]).sqnr_db is not None
    assert judge.point(products).holds
    assert judge.is_all_in_float(products), "pooling alone would be in INT8, without a weight of 4 bits"
    with pytest.raises(NothingIn4Bits, match="weight_bits is 4, for which onnxruntime has nothing to multiply by"):
        MixtureJudge(MixPrecision(replace(options, exclude=products)), onnx.load(model.path), spans, held).point(())


CLASSES = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 6] x) => (float[N, 2] y)
{
    a = MatMul (x, first)
    b = MatMul (x, second)
    c = Add (a, b)
    y = MatMul (c, last)
}
"""


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, Ranges, Samples]:
    """Two classes, told by what ``second`` makes of small numbers; ``first`` is loud and says nothing of them."""
    folder, random = tmp_path_factory.mktemp("classes"), np.random.default_rng(4)
    first, second, last = np.zeros((6, 4)), np.zeros((6, 4)), np.zeros((4, 2))
    first[:3, :2] = random.normal(size=(3, 2))
    second[3:, 2] = (100.0, 0.3, 0.2)  # One large weight beside small ones, which INT8 rounds coarsely.
    last[2], last[:2] = (1.0, -1.0), 20.0  # What is loud is the same for both classes.
    arrays = {name: array.astype(np.float32) for name, array in zip(("first", "second", "last"), (first, second, last))}
    onnx.save(with_arrays(onnx.parser.parse_model(CLASSES), arrays), folder / "net.onnx")
    x = random.normal(size=(200, 6)).astype(np.float32)
    x[:, 3] = 0.0
    x[0, 3] = 1.0
    answer = (x @ (first + second) @ last).argmax(axis=-1)
    np.savez(folder / "data.npz", x=x, y=answer)
    model = OnnxModel(folder / "net.onnx")
    source = DataSource(str(folder / "data.npz"), labels="y")
    samples = open_samples(source, input_specs_from_onnx(model.path), Preprocess())
    return model, Calibrate(method="minmax")(folder, model, samples), samples


def test_the_metric_ranks_what_it_needs_and_noise_what_is_loud(
    tmp_path: Path, classes: tuple[OnnxModel, Ranges, Samples]
) -> None:
    model, ranges, samples = classes
    options = PlacementOptions("tensorrt")
    for name in ("noise", "metric", "loose"):
        (tmp_path / name).mkdir()
    noises = MeasureLayers(options)(tmp_path / "noise", model, ranges, samples)
    held = HeldBound(MixtureBound(-math.inf, 0.0, "top1"), samples)
    by_metric = MeasureSensitivity(options)(tmp_path / "metric", model, ranges, noises, held)
    by_noise = noises_from_file(noises.path)
    gains = noises_from_file(by_metric.path)
    assert set(ranked(gains)) == set(ranked(by_noise))
    assert ranked(gains) != ranked(by_noise)
    shares = [gain.share for gain in gains]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)
    judge = MixtureJudge(MixPrecision(options), onnx.load(model.path), spans_of(ranges), held)
    drops = [judge.point(nodes).metric_drop or 0.0 for nodes in ranked(gains)]
    assert drops == sorted(drops)
    assert drops[0] < (judge.point(()).metric_drop or 0.0)
    loose = HeldBound(MixtureBound(-math.inf, 1.0, "top1"), samples)
    as_it_was = MeasureSensitivity(options)(tmp_path / "loose", model, ranges, noises, loose)
    assert noises_from_file(as_it_was.path) == by_noise, "all in INT8 holds it: nothing is ranked"


def spans_of(ranges: Ranges) -> dict[str, Span]:
    return spans_from_ranges(ranges_from_folder(ranges.path).read_for("tensorrt"))


def test_a_ranking_by_the_metric_is_for_a_bound_of_it() -> None:
    with pytest.raises(ConfigError, match="sensitivity is metric, which is for max_metric_drop; set that, or leave"):
        Quantize(sensitivity="metric", min_sqnr_db=20)


def test_the_fewest_of_a_ranking() -> None:
    ranking = [(name,) for name in "abcdefgh"]
    for needed in ("", "a", "c", "ac", "abcdefgh", "h"):
        asked: list[tuple[str, ...]] = []

        def holds(nodes: tuple[str, ...], needed: str = needed, asked: list[tuple[str, ...]] = asked) -> bool:
            asked.append(nodes)
            return set(needed) <= set(nodes)

        assert fewest(ranking, holds) == tuple(needed)
    assert fewest(ranking, lambda _: False) is None


def test_noise_counts_for_the_work_that_it_takes() -> None:
    noises = [InputNoise("a", ("large",), 0.5), InputNoise("b", ("small", "tiny"), 0.25)]
    noises += [InputNoise("weight of small", ("small",), 0.2), InputNoise("c", ("quiet",), 0.05)]
    ranking = ranked(noises)
    assert ranking == [("large",), ("small", "tiny"), ("quiet",)]
    work = {"large": 0.9, "small": 0.05, "tiny": 0.0, "quiet": 0.05}
    assert by_work(ranking, noises, lambda node: work[node]) == [("small", "tiny"), ("quiet",), ("large",)]
    assert by_work(ranking, noises, lambda _: 0.0) == ranking, "equal work: by noise"


def test_a_node_is_ranked_by_its_noisiest_input() -> None:
    noises = [InputNoise("x", ("n", "m"), 0.5), InputNoise("weight of n", ("n",), 0.3), InputNoise("z", ("k",), 0.2)]
    assert ranked(noises) == [("n", "m"), ("k",)]


def test_a_plan_holds_its_bound(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = f'{{ path = "{place / "data.npz"}", labels = "y" }}'
    (tmp_path / "plan.toml").write_text(
        f'[model]\nsource = "{place / "net.onnx"}"\n'
        f'[data]\nmetric = "top1"\ncalibration = {data}\nevaluation = {data}\n'
        '[variants]\nprecisions = ["fp32", "int8"]\n'
        '[lint]\nallow = ["overlap"]\n[calibrate]\nmethod = "minmax"\n'
        '[quantize]\nmin_sqnr_db = 30\nmax_metric_drop = 0.5\nsensitivity = "metric"\n'
        "[benchmark.protocol]\nmin_seconds = 0.01\n"
        "[validate.int8]\nmin_sqnr_db = 28\nmin_cosine = -1\nmax_metric_drop = 1\n"
    )
    made = flow.run(read_plan(tmp_path / "plan.toml"), Store(tmp_path / "store"), "benchmark")
    (variant,) = made.mixtures
    assert variant.name == "int8@onnxruntime"
    assert made.mixtures[variant].read()["in_float"]
    assert any(note.startswith("mixed precision: ") for note in made.models[variant].notes())
    assert made.verdicts[variant].read()["comparison"]["y"]["sqnr_db"] >= 28
    mixture, times = made.mixtures[variant].read(), made.frontiers[variant].read()
    assert len(times["ms"]) == len(mixture["points"]) == len(mixture["sets"])
    assert [len(nodes) for nodes in mixture["sets"]] == [point["num_in_float"] for point in mixture["points"]]
    numbers = {point["num_in_float"] for point, ms in zip(mixture["points"], times["ms"], strict=True) if ms}
    assert numbers == {point["num_in_float"] for point in mixture["points"]}, "one of each number of nodes is timed"
    assert times["fp32_ms"] > 0
    info = mixtures_of(made)[variant.name]
    assert (info.fp32_ms, [point.cpu_ms for point in info.points]) == (times["fp32_ms"], times["ms"])
    monkeypatch.chdir(tmp_path)
    words = (
        "quantize",
        str(place / "net.onnx"),
        "--data",
        str(place / "data.npz"),
        "--min-sqnr-db",
        "30",
        "-o",
        "q.onnx",
    )
    assert status_of(words) == 2
