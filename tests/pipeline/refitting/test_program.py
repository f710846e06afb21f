"""Refits from end to end, by a made-up backend in a copy of the program: the verb, plans, the store and the nights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends import reference
from engines.contract import Array
from pipeline.nightly.why import ONLY_WEIGHTS
from tests.pipeline.refitting.slate import PLAN, program_with_slate, write_network, write_plan
from tests.test_extension import trtforge

FLEET = """
[fleet]
plans = ["*/plan.toml"]
until = "build"
[nightly]
html = false
"""
AS_SLATE = ("--backend", "slate")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_with_slate(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def work(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks, and an engine of the first for each way in which weights can be kept."""
    folder = tmp_path_factory.mktemp("work")
    write_plan(folder)
    write_network(folder / "new.onnx", first=9.0)
    write_network(folder / "bias.onnx", last=7.0)
    write_network(folder / "other.onnx", more="z = Add(xw, folded_b) [relu] y = Relu(z)")
    for weights in ("refittable", "fixed", "stripped"):
        made = trtforge(
            program, folder, "build", "model.onnx", *AS_SLATE, "--weights", weights, "-o", f"{weights}.slate"
        )
        assert made.returncode == 0, made.stderr
    return folder


def answers(engine: Path) -> Array:
    with reference.load(engine, num_threads=0) as runner:
        return runner.infer({"x": np.ones((1, 4), np.float32)})["y"]


def record_of(engine: Path) -> dict[str, Any]:
    return dict(json.loads(engine.with_name(f"{engine.name}.json").read_text()))


def test_new_weights_in_an_engine_of_its_own(program: Path, work: Path) -> None:
    before = (work / "refittable.slate").read_bytes()
    done = trtforge(program, work, "refit", "refittable.slate", "new.onnx", "-o", "new.slate")
    assert (done.returncode, done.stdout) == (0, "new.slate\n"), done.stderr
    assert done.stderr == "trtforge: new.slate: Refitted with 2 weights in 0.2 s, and not built for them.\n"
    assert (work / "refittable.slate").read_bytes() == before, "the engine that it was made of stays as it is"
    assert answers(work / "new.slate").tolist() == answers(work / "new.onnx").tolist()
    assert answers(work / "new.slate").tolist() != answers(work / "refittable.slate").tolist()
    old, new = record_of(work / "refittable.slate"), record_of(work / "new.slate")
    assert new["refitted_from"] | {"seconds": 0} == {
        "engine_sha256": old["sha256"], "model_sha256": new["refitted_from"]["model_sha256"], "num_weights": 2,
        "num_changed": 1, "seconds": 0,
    }  # fmt: skip
    assert new["made_from"]["model"] != old["made_from"]["model"]
    assert new["options"] == {"weights": "refittable"}
    assert new["graph"]["digest"] == old["graph"]["digest"]
    assert (new["size_bytes"], new["backend"]) == ((work / "new.slate").stat().st_size, "slate")
    judged = trtforge(program, work, "validate", "new.onnx", "new.slate", *AS_SLATE, "--data", "data.npz")
    assert judged.returncode == 0, judged.stderr
    again = trtforge(program, work, "refit", "new.slate", "model.onnx", "-o", "back.slate")
    assert again.returncode == 0, again.stderr
    assert answers(work / "back.slate").tolist() == answers(work / "model.onnx").tolist()


@pytest.mark.parametrize(
    ("engine", "model", "status", "words"),
    [
        (
            "refittable.slate",
            "other.onnx",
            2,
            "other.onnx: has another graph than refittable.slate was built from: n",
        ),
        ("refittable.slate", "bias.onnx", 4, "refittable.slate: weights ['folded_b'] were folded into others"),
        (
            "fixed.slate",
            "new.onnx",
            2,
            'fixed.slate: was built with weights = "fixed", so that it cannot be refitted',
        ),
        (
            "stripped.slate",
            "new.onnx",
            2,
            "new.onnx: weights 'w' are others than stripped.slate was built from; an en",
        ),
        (
            "model.onnx",
            "new.onnx",
            2,
            "model.onnx: has no record beside it, which says what graph it was built from",
        ),
        ("none.slate", "new.onnx", 2, "none.slate: does not exist"),
        ("refittable.slate", "none.onnx", 2, "none.onnx: does not exist"),
        ("abcdef123456", "new.onnx", 2, "abcdef123456: there is neither such a file nor a store in .trtforge; name an"),
    ],
)
def test_what_cannot_be_leaves_nothing(
    program: Path, work: Path, engine: str, model: str, status: int, words: str
) -> None:
    before = sorted(path.name for path in work.iterdir())
    done = trtforge(program, work, "refit", engine, model, "-o", "out.slate")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"trtforge: {words}")
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in work.iterdir()) == before


def test_an_engine_without_weights_is_filled(program: Path, work: Path) -> None:
    done = trtforge(program, work, "refit", "stripped.slate", "model.onnx", "-o", "filled.slate")
    assert done.returncode == 0, done.stderr
    assert answers(work / "filled.slate").tolist() == answers(work / "model.onnx").tolist()
    assert record_of(work / "filled.slate")["options"] == {"weights": "fixed"}, "it takes no others"


def test_a_plan_fills_what_it_built_without_weights(program: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, PLAN.replace("refittable", "stripped"))
    built = trtforge(program, tmp_path, "build", plan.name)
    assert built.returncode == 0, built.stderr
    engine = Path(built.stdout.split()[1])
    assert (tmp_path / engine).read_bytes() == b"stripped", "the small one is what is built"
    done = trtforge(program, tmp_path, "validate", plan.name)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / ".trtforge/refit").iterdir()
    assert answers(folder / "model.slate").tolist() == answers(tmp_path / "model.onnx").tolist()
    why = trtforge(program, tmp_path, "why", folder.name)
    assert why.stdout == "it was built without weights, and is filled with them\n"
    by_folder = trtforge(program, tmp_path, "refit", str(engine.parent), "model.onnx", "-o", "by_folder.slate")
    assert by_folder.returncode == 0, by_folder.stderr


def fleet_line(folder: Path) -> dict[str, Any]:
    (line,) = json.loads((folder / "nightly/nightly.json").read_text())["lines"]
    return dict(line)


@pytest.mark.slow
def test_nights_refit_where_only_weights_changed(program: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "net")
    (tmp_path / "fleet.toml").write_text(FLEET)

    def night() -> dict[str, Any]:
        done = trtforge(program, tmp_path, "nightly", "fleet.toml")
        assert done.returncode == 0, done.stdout + done.stderr
        return fleet_line(tmp_path)

    def results(stage: str) -> list[Path]:
        return sorted((tmp_path / ".trtforge" / stage).glob("*"))

    assert night()["why"] == ["export: nothing like it is in the store"]
    (built,) = results("build")

    # Only weights changed: the engine is refitted, and report and `why` say so.
    write_network(plan.with_name("model.onnx"), first=9.0)
    record = night()
    sentence = f"fp32@slate: {ONLY_WEIGHTS}"
    assert record["why"] == [f"export: its source changed, {plan.with_name('model.onnx')}", sentence]
    assert sentence in (tmp_path / "nightly/nightly.md").read_text()
    (refitted,) = results("refit")
    assert results("build") == [built]
    assert answers(refitted / "model.slate").tolist() == answers(plan.with_name("model.onnx")).tolist()
    recipe = json.loads((refitted / "recipe.json").read_text())
    sealed = json.loads((built / "result.json").read_text())
    assert recipe["inputs"][0]["digest"] == sealed["content"], "it names the engine that it was made of"
    why = trtforge(program, tmp_path, "why", refitted.name)
    assert why.stdout.splitlines() == [record["why"][0], ONLY_WEIGHTS]
    assert f"build {built.name[:12]}" in trtforge(program, tmp_path, "show", refitted.name).stdout

    # Its own gate judges it, and nothing is made again for that.
    gated = trtforge(program, tmp_path, "gate", "net/plan.toml", "-o", "gate")
    assert gated.returncode == 0, gated.stderr
    assert "fp32@slate may ship" in gated.stdout
    assert (results("refit"), results("build")) == ([refitted], [built])

    # What the engine does not let be replaced is built, and the command says why.
    write_network(plan.with_name("model.onnx"), last=7.0)
    assert night()["why"] == [f"export: its source changed, {plan.with_name('model.onnx')}"]
    words = "fp32@slate: is built anew, though only weights changed: it could not be refitted ("
    assert words in (tmp_path / "nightly/lines/net.here/log.txt").read_text()
    assert len(results("build")) == 2

    # Of several engines the one is refitted that the least weights are other than in.
    write_network(plan.with_name("model.onnx"), first=3.0, last=7.0)
    for options, num_built, num_refitted in (((), 2, 2), (("--set", "build.weights=fixed"), 3, 2)):
        done = trtforge(program, tmp_path, "build", "net/plan.toml", *options)
        assert done.returncode == 0, done.stderr
        assert (len(results("build")), len(results("refit"))) == (num_built, num_refitted), options
