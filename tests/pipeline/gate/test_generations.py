"""Generations of a baseline: each that is set stays, a rollback is one rename, what was withdrawn is remembered."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline import output
from pipeline.artifact import digest_of_engine
from pipeline.errors import ConfigError, DataError
from pipeline.gate import generations as generations_module
from pipeline.gate.baseline import baseline_named, generations, read_baseline, rollback, set_baseline
from pipeline.gate.generations import GENERATIONS, add_generation, names_in, settle, withdrawn
from pipeline.json_record import write_json
from pipeline.machine.identity import this_machine
from tests.pipeline.gate.made_gate import PASSED, made_gate

if TYPE_CHECKING:
    from tests.conftest import Command

STORE = Path(".trtforge")
FINAL = STORE / "baselines" / "good"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def set_engine(content: str, keep: int = 3) -> None:
    """Set baseline `good` from a gate that an engine with this content passed, such as `A`."""
    engine = Path(f"{content}.plan")
    engine.write_text(content)
    gate = made_gate(PASSED)
    info = replace(gate.engines[0], name=gate.candidate, path=str(engine), digest=digest_of_engine(engine))
    gate = replace(gate, engines=(info,), machine=this_machine(), measured=())
    write_json(gate, Path("gate/gate.json"))
    set_baseline("good", Path("gate"), STORE, first=False, keep=keep)


def digest(content: str) -> str:
    return digest_of_engine(Path(f"{content}.plan"))


def current() -> str:
    """The content of the current engine, as a gate would get it."""
    baseline = baseline_named("good", STORE)
    assert baseline is not None
    if FINAL.exists():
        assert read_baseline(FINAL).record == baseline.record
    return baseline.engine.path.read_text()


def listed() -> str:
    """All generations by the content of their engines, such as `A B* (C)`: * the current one, () withdrawn."""
    words = []
    for generation in generations("good", STORE):
        word = (generation.folder / generation.record.engine.path).read_text() + "*" * generation.is_current
        words.append(f"({word})" if generation.withdrawn_on else word)
    return " ".join(words)


def test_each_that_is_set_stays() -> None:
    for content in "ABC":
        set_engine(content)
    assert listed() == "A B C*"
    assert current() == "C"
    assert FINAL.is_symlink()


def test_the_same_engine_again_is_no_generation_and_has_its_new_record() -> None:
    for content in "ABB":
        set_engine(content)
    assert listed() == "A B*"
    before = read_baseline(FINAL).record
    set_engine("A")
    assert listed() == "B A*", "an earlier engine that is set again is not kept twice"
    assert read_baseline(FINAL).record.set_on >= before.set_on


def test_so_many_stay() -> None:
    for content in "ABCDEF":
        set_engine(content)
    assert listed() == "C D E F*"
    set_engine("G", keep=1)
    assert listed() == "F G*"
    set_engine("H", keep=0)
    assert listed() == "H*"
    with pytest.raises(ConfigError, match=r"baseline 'good': has no generation but the current one, \d+; set another"):
        rollback("good", STORE)


def test_rollback_and_what_is_withdrawn() -> None:
    for content in "ABC":
        set_engine(content)
    inode = (FINAL / "engine" / "C.plan").stat().st_ino
    assert rollback("good", STORE).engine.path.read_text() == "B"
    assert listed() == "A B* (C)"
    assert list(withdrawn("good", STORE)) == [digest("C")]
    rollback("good", STORE)
    assert listed() == "A* (B) (C)"
    with pytest.raises(ConfigError, match="no generation before the current one, 1, was not withdrawn; name one with"):
        rollback("good", STORE)
    rollback("good", STORE, to=3)
    assert listed() == "A (B) C*", "going on to a later one takes that back"
    assert (FINAL / "engine" / "C.plan").stat().st_ino == inode, "nothing was copied"
    assert list(withdrawn("good", STORE)) == [digest("B")]


def test_those_in_between_are_withdrawn_too() -> None:
    for content in "ABCD":
        set_engine(content)
    rollback("good", STORE, to=1)
    assert listed() == "A* (B) (C) (D)"
    assert set(withdrawn("good", STORE)) == {digest(content) for content in "BCD"}


def test_a_next_one_after_a_rollback_follows_those_that_were_withdrawn() -> None:
    for content in "ABC":
        set_engine(content)
    rollback("good", STORE)
    set_engine("D")
    assert listed() == "A B (C) D*"
    rollback("good", STORE)
    assert current() == "B"


def test_withdrawn_ones_go_before_good_ones() -> None:
    for content in "ABC":
        set_engine(content)
    rollback("good", STORE)
    set_engine("D", keep=2)
    assert listed() == "A B D*"
    assert list(withdrawn("good", STORE)) == [digest("C")], "it is held back though its files are gone"


def test_setting_it_by_hand_lifts_that(caplog: pytest.LogCaptureFixture) -> None:
    for content in "AB":
        set_engine(content)
    rollback("good", STORE)
    set_engine("B")
    assert listed() == "A B*"
    assert withdrawn("good", STORE) == {}
    assert "baseline 'good': its engine was withdrawn on 2" in caplog.text


def test_the_command(command: Command) -> None:
    for content in "ABC":
        set_engine(content)
    said = command("baseline", "rollback", "good")
    assert (said.status, said.out) == (0, f"{FINAL}\n")
    assert said.err == "trtforge: good is generation 2 now, int8@onnxruntime\n"
    lines = command("baseline", "list").out.splitlines()
    assert [line.split()[:2] for line in lines] == [["baseline", "generation"], *(["good", n] for n in "123")]
    assert [words in line for line, words in zip(lines[1:], ("earlier", "current", "withdrawn 2"))] == [True] * 3
    assert "engine/B.plan" in command("baseline", "show", "good").out
    assert command("baseline", "rollback", "good", "--to", "3").status == 0
    assert current() == "C"
    said = command("baseline", "rollback", "good", "--to", "9")
    assert (said.status, said.err) == (
        2, "trtforge: baseline 'good': generation 9 is not stored; give one of 1, 2 with --to\n",
    )  # fmt: skip
    assert "generation 3 is the current one; give one of" in command("baseline", "rollback", "good", "--to", "3").err
    said = command("baseline", "rollback", "goof")
    assert said.err == "trtforge: baseline 'goof': is not stored in .trtforge; did you mean 'good'? known: good\n"
    assert command("baseline", "rollback", "a/b").status == 2


def test_a_damaged_earlier_one_is_not_gone_back_to() -> None:
    for content in "AB":
        set_engine(content)
    (STORE / "baselines" / GENERATIONS / "good" / "1" / "engine" / "A.plan").write_text("a")
    with pytest.raises(DataError, match=r"baseline 'good': .*A\.plan is not what was set"):
        rollback("good", STORE)
    assert listed() == "A B*".replace("A", "a"), "nothing is withdrawn by a rollback that failed"


@pytest.mark.parametrize("damage", ["engine/B.plan", "baseline.json", "SHA256SUMS"])
def test_a_damaged_current_one_is_rolled_back_from(damage: str) -> None:
    for content in "AB":
        set_engine(content)
    (FINAL / damage).write_text("x")
    rollback("good", STORE)
    assert current() == "A"


def test_a_damaged_list_of_withdrawn_ones_is_a_sentence() -> None:
    for content in "AB":
        set_engine(content)
    (STORE / "baselines" / GENERATIONS / "good" / "withdrawn.json").write_text("{")
    with pytest.raises(DataError, match=r"withdrawn\.json: is not JSON .*; delete it if no engine is to be held back"):
        withdrawn("good", STORE)


def as_an_earlier_version_set_it() -> None:
    """A folder, not a link; also what a copy without links has."""
    whole = FINAL.resolve()
    FINAL.unlink()
    shutil.copytree(whole, FINAL)
    shutil.rmtree(STORE / "baselines" / GENERATIONS)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_of_an_earlier_version_becomes_a_generation(exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(generations_module, "exchanged", lambda *_: False)
    set_engine("A")
    as_an_earlier_version_set_it()
    assert (current(), listed()) == ("A", "A*")
    set_engine("B")
    assert (current(), listed()) == ("B", "A B*")
    rollback("good", STORE)
    assert (current(), listed()) == ("A", "A* (B)")


class Killed(Exception):
    """Stands for a kill: whatever would be tidied up is as it was."""


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_while_a_folder_becomes_a_generation(exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call that changes a name, a reader has A before and after, and the next call goes on."""
    set_engine("A")
    as_an_earlier_version_set_it()
    shutil.copytree(STORE, "template", symlinks=True)
    names = ("rename", "replace", "symlink", "unlink")
    real = {name: getattr(os, name) for name in names} | {"exchanged": output.exchanged}
    num_calls = 0
    for at in range(1, 99):
        shutil.rmtree(STORE)
        shutil.copytree("template", STORE, symlinks=True)
        count = 0

        def counting(name: str) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == at:  # noqa: B023  # It is called in this turn of the loop.
                    raise Killed
                return real[name](*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, counting(name))
            patch.setattr(generations_module, "exchanged", counting("exchanged") if exchange else lambda *_: False)
            try:
                settle("good", STORE)
            except Killed:
                num_calls = at
        assert (current(), listed(), names_in(STORE)) == ("A", "A*", ["good"]), f"at {at}"
        settle("good", STORE)
        assert (current(), listed()) == ("A", "A*")
        assert FINAL.is_symlink()
        if num_calls < at:
            break
    assert num_calls == (3 if exchange else 5)


def test_one_that_never_became_current_counts_for_nothing() -> None:
    set_engine("A")
    shutil.copytree(FINAL, "left", symlinks=True)
    set_engine("B")
    add_generation("good", Path("left"), STORE)
    assert listed() == "A B*"
    rollback("good", STORE)
    assert listed() == "A* (B)"


def test_a_link_whose_folder_is_gone_is_damage_and_not_an_absence() -> None:
    set_engine("A")
    shutil.rmtree(STORE / "baselines" / GENERATIONS)
    with pytest.raises(DataError, match=r"baseline 'good': .* cannot be read"):
        baseline_named("good", STORE)
    set_engine("B")
    assert listed() == "B*"
