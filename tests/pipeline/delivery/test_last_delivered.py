"""`trtforge deliver` of engines that are signed: an older one than what lies there only after a rollback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.signing.envelope import sealed
from pipeline.signing.statement import statement_of
from tests.conftest import Command

pytest.importorskip("securesystemslib")
pytest.importorskip("cryptography")
DELIVERY = ("deliver", "good", "--to", "triton", "repository", "--max-batch", "16")


def gated(command: Command, plan: Path, opset: int) -> Path:
    """The tiny network's FP32 engine as baseline `good`: a later generation of it, if there is one."""
    changed = ("--set", 'variants.precisions=["fp32"]', "--set", "gate.pays=false", "--set", "gate.html=false")
    export = ("--set", f"export.opset={opset}")
    said = command("gate", plan, *changed, *export, "--budget", "size_mib <= 1", "-o", f"gate{opset}")
    assert said.status == 0, said.err
    assert command("baseline", "set", "good", f"gate{opset}").status == 0
    (engine,) = Path(".trtforge/baselines/good").glob("engine/model.onnx")
    return engine.resolve()


def sign_on(engine: Path, when: str) -> None:
    """As `trtforge sign` does, at another time."""
    statement = statement_of(engine)
    statement["predicate"]["runDetails"]["metadata"]["finishedOn"] = when
    folder = Path(".trtforge/signatures")
    folder.mkdir(exist_ok=True)
    name = f"{statement['subject'][0]['digest']['sha256']}.dsse.json"
    (folder / name).write_text(json.dumps(sealed(statement, Path("release.key"))))


@pytest.fixture
def two_nights(command: Command, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two generations, signed on two days; the later one is the last that was delivered."""
    assert command("sign", "--new-key", "release.key").status == 0
    for opset, when in ((17, "2026-11-23T05:00:00Z"), (18, "2026-11-24T05:00:00Z")):
        sign_on(gated(command, plan, opset), when)
    monkeypatch.setenv("TRTFORGE_TRUSTED", "release.pub")
    said = command(*DELIVERY)
    assert said.status == 0, said.err
    assert Path("repository/good/good.delivered.dsse.json").is_file()


@pytest.mark.usefixtures("two_nights")
def test_an_older_one_in_the_place_of_the_newest_is_refused(command: Command) -> None:
    """As by somebody who can replace the link, and has no key."""
    link = Path(".trtforge/baselines/good")
    link.unlink()
    link.symlink_to(".generations/good/1")
    said = command(*DELIVERY)
    assert said.status == 2
    assert said.err == (
        "trtforge: baseline 'good': its engine was signed 2026-11-23T05:00:00Z, and one that was signed "
        "2026-11-24T05:00:00Z lies in repository/good; it was not delivered: go back by `trtforge baseline rollback "
        "good`, or sign it again\n"
    )
    assert sorted(path.name for path in Path("repository/good").iterdir()) == [
        "1", "config.pbtxt", "good.delivered.dsse.json",
    ]  # fmt: skip


@pytest.mark.usefixtures("two_nights")
def test_a_rollback_is_the_owners_way(command: Command) -> None:
    assert command("baseline", "rollback", "good").status == 0
    said = command(*DELIVERY)
    assert (said.status, said.out) == (0, "repository/good/2\n"), said.err
    assert command("baseline", "rollback", "good", "--to", "2").status == 0
    said = command(*DELIVERY)
    assert (said.status, said.out) == (0, "repository/good/1\n"), said.err


@pytest.mark.usefixtures("two_nights")
def test_with_the_key_a_rollback_signs_again_so_that_devices_take_it_too(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTFORGE_SIGNING_KEY", "release.key")
    assert command("baseline", "rollback", "good").status == 0
    (engine,) = Path(".trtforge/baselines/good").glob("engine/model.onnx")
    said = command("verify", engine.resolve(), "--trusted", "release.pub")
    assert said.status == 0, said.err
    assert command(*DELIVERY).status == 0
    delivered = json.loads(Path("repository/good/good.delivered.dsse.json").read_text())
    assert delivered["payload"]
    signed = {file.read_text() for file in Path(".trtforge/signatures").iterdir()}
    assert Path("repository/good/good.delivered.dsse.json").read_text() in signed


@pytest.mark.usefixtures("two_nights")
def test_what_lies_there_must_be_of_a_key_that_is_trusted(command: Command) -> None:
    last = Path("repository/good/good.delivered.dsse.json")
    last.write_text(last.read_text().replace('"sig": "', '"sig": "AAAA'))
    said = command(*DELIVERY)
    assert (said.status, said.out) == (2, "")
    assert "good.delivered.dsse.json" in said.err
