"""What tests of the pipeline start from: made-up variants, pictures, samples, and a user's folder with a plan."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from pipeline.artifact import OnnxModel
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.record import VariantRecord
from pipeline.store import Store
from tests.made import timed, variant_named
from tests.pipeline.plan_folder import make_users_folder
from tests.pipeline.quadrants import QUADRANTS


@pytest.fixture
def make_variant() -> Callable[[str, float | None, int], VariantRecord]:
    return variant_named


@pytest.fixture
def make_timed() -> Callable[[VariantRecord, float, float | None], VariantRecord]:
    return timed


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one: `quadrants.onnx`, and `right.npz`: `image` of 0..255, with labels `y`."""
    model = onnx.parser.parse_model(QUADRANTS)
    model.graph.node.remove(model.graph.node[0])  # Sub by 100 would say by itself what scale it wants:
    model.graph.node[0].op_type, model.graph.node[0].input[:] = "ThresholdedRelu", ["image"]  # this does not.
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("alpha", 100.0))
    onnx.save(model, tmp_path / "quadrants.onnx")
    random = np.random.default_rng(3)
    image = random.uniform(0, 60, (200, 1, 8, 8)).astype(np.float32)
    labels = np.arange(200) % 4
    for index, label in enumerate(labels):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[index, :, row : row + 4, column : column + 4] += 190
    np.savez(tmp_path / "right.npz", image=image[:100], y=labels[:100], evaluation=image[100:], z=labels[100:])
    np.savez(tmp_path / "wrong.npz", image=image[:100] / np.float32(255), y=labels[:100],
             evaluation=image[100:] / np.float32(255), z=labels[100:])  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def samples(tiny: Path) -> Samples:
    """192 images for the tiny network."""
    images = np.random.default_rng(9).normal(size=(192, 4, 8, 8)).astype(np.float32)
    np.savez(tiny / "many.npz", image=images)
    return open_samples(DataSource("many.npz"), input_specs_from_onnx(tiny / "tiny.onnx"), Preprocess())


@pytest.fixture
def fp32(tiny: Path) -> OnnxModel:
    return OnnxModel(tiny / "tiny.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: `net.onnx`, `data.npz` and `plan.toml`."""
    make_users_folder(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def store_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store after a run of the plan of such a folder, until benchmark; nobody changes it."""
    made = tmp_path_factory.mktemp("run")
    make_users_folder(made)
    run(read_plan(made / "plan.toml"), Store(made / "store"), "benchmark")
    return made / "store"


@pytest.fixture
def warm(folder: Path, store_of_a_run: Path) -> Path:
    """A user's folder whose plan was run: what that made lies in `store`."""
    shutil.copytree(store_of_a_run, folder / "store", symlinks=True)
    return folder
