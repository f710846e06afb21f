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
from calibration.precision.placement import PlacementOptions
from pipeline import flow
from pipeline.accuracy.layer_noise import InputNoise, MeasureLayers
from pipeline.accuracy.mixed_precision import (
    HeldBound,
    MixPrecision,
    fewest,
    ranked,
)
from pipeline.accuracy.mixture import MixtureBound, mixture_sentence
from pipeline.artifact import Mixture, OnnxModel, Ranges
from pipeline.command.cli import status_of
from pipeline.errors import ConfigError
from pipeline.plan import read_plan
from pipeline.stages.calibrate import Calibrate
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


def test_the_fewest_of_a_ranking() -> None:
    ranking = [(name,) for name in "abcdefgh"]
    for needed in ("", "a", "c", "ac", "abcdefgh", "h"):
        asked: list[tuple[str, ...]] = []

        def holds(nodes: tuple[str, ...], needed: str = needed, asked: list[tuple[str, ...]] = asked) -> bool:
            asked.append(nodes)
            return set(needed) <= set(nodes)

        assert fewest(ranking, holds) == tuple(needed)
    assert fewest(ranking, lambda _: False) is None


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
        "[quantize]\nmin_sqnr_db = 30\nmax_metric_drop = 0.5\n"
        "[validate.int8]\nmin_sqnr_db = 28\nmin_cosine = -1\nmax_metric_drop = 1\n"
    )
    made = flow.run(read_plan(tmp_path / "plan.toml"), Store(tmp_path / "store"), "validate")
    (variant,) = made.mixtures
    assert variant.name == "int8@onnxruntime"
    assert made.mixtures[variant].read()["in_float"]
    assert any(note.startswith("mixed precision: ") for note in made.models[variant].notes())
    assert made.verdicts[variant].read()["comparison"]["y"]["sqnr_db"] >= 28
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
