"""Pruning at once and while training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.data.batches import Samples
from calibration.errors import ModelError
from engines.torch_graph import library
from pipeline.artifact import OnnxModel
from pipeline.engine_runner import load_simulation
from pipeline.errors import ConfigError, Unavailable
from pipeline.stages.prune import Prune, PruningMethod
from pipeline.training.options import TrainingAim
from tests.pipeline.training.conftest import samples_of


def weights(model: OnnxModel) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model.path).graph.initializer}


METHODS: tuple[PruningMethod, ...] = ("obs", "wanda")


def aim_of(model: OnnxModel) -> TrainingAim:
    return TrainingAim(model, "", "", Path())


def loss(model: OnnxModel, pruned: OnnxModel, samples: Samples) -> float:
    answers = []
    for each in (model, pruned):
        with load_simulation(each.path, 1) as runner:
            answers.append(np.concatenate([runner.infer(feed)["y"] for feed in samples.batches(32)]))
    return float(np.square(answers[0] - answers[1]).mean())


def test_at_once_needs_no_torch(
    tmp_path: Path, model: OnnxModel, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "why_not", lambda: "torch is not installed; install it")
    pruned = Prune(share=0.5)(tmp_path, model, samples, aim_of(model))
    shares = {name: float((array == 0).mean()) for name, array in weights(pruned).items()}
    assert shares == {"first": 0.5, "bias": 0.0, "second": 0.5, "last": 0.5, "Conv_c_bias": 0.0}
    assert pruned.path.stat().st_size == pytest.approx(model.path.stat().st_size, rel=0.05)
    note, how = json.loads((tmp_path / "notes.json").read_text())
    assert how == ("method obs: weights of 3 of 3 convolutions and matrix products make good for zeros, on 96 samples")
    assert note.startswith(
        "prune: 1,480 of 2,992 weights are zero (49%), in 3 convolutions and matrix products; the size"
    )
    with pytest.raises(
        Unavailable, match="prune: torch is not installed; install it; or prune at once, with epochs = 0"
    ):
        Prune(epochs=1)(tmp_path, model, samples, aim_of(model))


def test_weights_that_stay_make_good_for_the_zeros(tmp_path: Path, model: OnnxModel, samples: Samples) -> None:
    """On samples that it has not seen as well: every other one is left to judge."""
    seen = samples_of(model.path.parent, limit=samples.num_samples // 2)
    losses = {}
    for method in METHODS:
        (tmp_path / method).mkdir()
        pruned = Prune(method=method)(tmp_path / method, model, seen, aim_of(model))
        losses[method] = loss(model, pruned, samples)
    assert losses["obs"] < losses["wanda"] / 4
    dense, zeroed = weights(model), weights(OnnxModel(tmp_path / "wanda" / "model.onnx"))
    for name, array in zeroed.items():
        assert ((array == dense[name]) | (array == 0)).all(), "wanda changes nothing else"


def test_with_few_samples_it_is_no_worse_than_zeros_alone(tmp_path: Path, model: OnnxModel, samples: Samples) -> None:
    few, losses = samples_of(model.path.parent, limit=2), []
    for method in METHODS:
        (tmp_path / method).mkdir()
        pruned = Prune(method=method)(tmp_path / method, model, few, aim_of(model))
        losses.append(loss(model, pruned, samples))
    assert losses[0] < losses[1]


def test_training_begins_with_zeros_made_good_on_what_is_not_held_out(
    tmp_path: Path, model: OnnxModel, samples: Samples
) -> None:
    """And what judges it has seen none of what it is judged by; what it is not better than has seen all."""
    for name in ("once", "work"):
        (tmp_path / name).mkdir()
    at_once = Prune(share=0.9)(tmp_path / "once", model, samples, aim_of(model))
    stage = Prune(share=0.9, epochs=40, batch_size=8, rate=0.03, num_threads=1)
    trained = stage(tmp_path / "work", model, samples, aim_of(model))
    record = json.loads((tmp_path / "work" / "training.json").read_text())
    zeros = [float((weights(each)["second"] == 0).mean()) for each in (at_once, trained)]
    assert zeros == pytest.approx([0.9, 0.9], abs=0.01)
    assert record["is_used"], record["decision"]
    assert record["best"] >= 1
    again = Prune(share=0.9, epochs=1, batch_size=8, rate=1e-9, num_threads=1)
    (tmp_path / "idle").mkdir()
    idle = again(tmp_path / "idle", model, samples, aim_of(model))
    assert idle.path.read_bytes() == at_once.path.read_bytes(), "training that won nothing is not used"


def test_zeros_that_come_meanwhile_lose_less_and_stay(tmp_path: Path, model: OnnxModel, samples: Samples) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "work").mkdir()
    at_once = Prune(share=0.6, method="wanda")(tmp_path / "once", model, samples, aim_of(model))
    stage = Prune(share=0.6, method="wanda", epochs=10, batch_size=8, rate=0.01, num_threads=1)
    trained = stage(tmp_path / "work", model, samples, aim_of(model))
    record = json.loads((tmp_path / "work" / "training.json").read_text())
    assert record["is_used"], record["decision"]
    assert record["best"] >= 5, "an epoch without all its zeros is none to keep"
    assert loss(model, trained, samples) < loss(model, at_once, samples) / 2
    assert float((weights(trained)["second"] == 0).mean()) == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_two_of_four(tmp_path: Path, model: OnnxModel, samples: Samples, method: PruningMethod) -> None:
    pruned = Prune(pattern="2:4", method=method)(tmp_path, model, samples, aim_of(model))
    zeros = (weights(pruned)["second"] == 0).reshape(16, 4, 4, 3, 3).sum(axis=2)
    assert (zeros == 2).all()
    with pytest.raises(ConfigError, match=r"share is 0.75, but the pattern 2:4 has a share of 0.5"):
        Prune(pattern="2:4", share=0.75)


def test_where_nothing_can_be_pruned(tmp_path: Path, model: OnnxModel, samples: Samples) -> None:
    with pytest.raises(ModelError, match="nothing can be pruned"):
        Prune(exclude=("Conv", "MatMul"))(tmp_path, model, samples, aim_of(model))
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match="share is"):
            replace(Prune(), share=share)
