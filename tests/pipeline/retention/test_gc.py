"""What may go: nothing that is needed or in use, the oldest first; and a kill leaves whole results and no others."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.signing.trust import sha256_of
from pipeline.artifact import digest_of_engine
from pipeline.errors import ConfigError, DataError
from pipeline.gate.baseline import rollback, set_baseline
from pipeline.json_record import write_json
from pipeline.machine.identity import this_machine
from pipeline.retention.gc import Rules, plan_gc, sweep
from pipeline.retention.pins import pin
from pipeline.retention.verify import verify
from pipeline.store import Store
from tests.pipeline.gate.made_gate import PASSED, made_gate
from tests.pipeline.retention.made_store import DAY_SECONDS, Join, MadeStore, used

if TYPE_CHECKING:
    from tests.conftest import Command

MIB = 1 << 20


DEFAULT = Rules()


def going(store: Path, rules: Rules = DEFAULT) -> str:
    """The texts of the results that would go, in their order."""
    return " ".join((result.folder / "engine.plan").read_text() for result in plan_gc(store, rules).going)


def set_as_baseline(path: Path) -> None:
    gate = made_gate(PASSED)
    info = replace(gate.engines[0], name=gate.candidate, path=str(path), digest=digest_of_engine(path))
    info = replace(info, backend="onnxruntime", min_batch=0, max_batch=0)
    write_json(replace(gate, engines=(info,), machine=this_machine(), measured=()), Path("gate/gate.json"))
    set_baseline("good", Path("gate"), Path(".trtforge"), first=False)


def test_what_nothing_needs_and_nobody_used_goes_the_oldest_first(made_store: MadeStore) -> None:
    for text, days_ago in {"A": 15, "B": 40, "C": 13, "D": 0}.items():
        made_store.made(text, days_ago=days_ago)
    plan = plan_gc(made_store.folder, Rules())
    assert (going(made_store.folder), plan.num_used, plan.num_held) == ("B A", 2, 0)
    assert made_store.there() == "A B C D", "a plan removes nothing"
    assert [result.stage for result in sweep(plan)] == ["join", "join"]
    assert made_store.there() == "C D"
    assert list((made_store.folder / "tmp").iterdir()) == []
    assert going(made_store.folder, Rules(keep_days=0)) == "C", "what was used within a day stays in any case"


def test_what_something_that_stays_was_made_from_stays(made_store: MadeStore) -> None:
    first = made_store.made("A", days_ago=30)
    second = made_store.made("B", first, days_ago=30)
    made_store.made("C", second, days_ago=1)
    made_store.made("X", first, days_ago=30)
    plan = plan_gc(made_store.folder, Rules())
    assert (going(made_store.folder), plan.num_used, plan.num_held) == ("AX", 1, 2)


def test_pinned_results_and_their_forebears_stay(made_store: MadeStore) -> None:
    first = made_store.made("A", days_ago=30)
    second = made_store.made("B", first, days_ago=30)
    other = made_store.made("C", days_ago=30)
    pin(made_store.folder, "net", [other.path.parent.name, "no such result"])
    pin(made_store.folder, "net", [second.path.parent.name])
    assert going(made_store.folder) == ""
    assert going(made_store.folder, Rules(keep_last=1)) == "C"
    (made_store.folder / "pins/net.json").write_text("{")
    with pytest.raises(DataError, match="for nobody knows which results it holds"):
        plan_gc(made_store.folder, Rules())


def test_baselines_and_what_their_generations_were_made_from_stay(made_store: MadeStore) -> None:
    first = made_store.made("A", days_ago=30)
    for text in "BCD":
        set_as_baseline(made_store.made(text, first).path)
        used(made_store.made(text, first), 30)
    used(first, 30)
    made_store.made("X", days_ago=30)
    assert going(made_store.folder) == "X"
    assert going(made_store.folder, Rules(keep_last=1)) == "AB AC X"
    sweep(plan_gc(made_store.folder, Rules(keep_last=1)))
    assert made_store.there() == "A AD"
    assert verify(made_store.folder).damages == (), "the earlier generations are whole without their results"
    assert rollback("good", made_store.folder).engine.path.read_text() == "AC"
    assert going(made_store.folder, Rules(keep_last=1)) == "", "the newest generation stays, and the current one"


def test_an_engine_that_is_a_baselines_frees_nothing(made_store: MadeStore) -> None:
    first = made_store.made("A", times=MIB)
    set_as_baseline(first.path)
    used(first, 30)
    (made_store.folder / "baselines").rename("elsewhere")
    assert 0 < plan_gc(made_store.folder, Rules()).num_bytes_freed < MIB, "the engine has another name"
    shutil.rmtree("elsewhere")
    assert plan_gc(made_store.folder, Rules()).num_bytes_freed > MIB


def test_so_many_go_that_it_fits(made_store: MadeStore) -> None:
    for number, text in enumerate("ABCD"):
        made_store.made(text, days_ago=30 - number, times=MIB)
    whole = plan_gc(made_store.folder, Rules()).inventory.num_bytes()
    for num_going in range(5):
        most = (whole - (num_going - 0.5) * MIB) / (1 << 30)
        plan = plan_gc(made_store.folder, Rules(max_gib=most))
        assert (len(plan.going), plan.num_spared) == (num_going, 4 - num_going)
    assert len(plan_gc(made_store.folder, Rules(max_gib=1e-9)).going) == 4


@pytest.mark.parametrize("rules", [Rules(keep_days=-1), Rules(keep_last=0), Rules(max_gib=-1)])
def test_rules_that_cannot_be(made_store: MadeStore, rules: Rules) -> None:
    with pytest.raises(ConfigError):
        plan_gc(made_store.folder, rules)


def test_what_was_used_since_the_plan_stays(made_store: MadeStore) -> None:
    for text in "AB":
        made_store.made(text, days_ago=30)
    plan = plan_gc(made_store.folder, Rules())
    Store(made_store.folder).run(Join("A"))
    assert len(sweep(plan)) == 1
    assert made_store.there() == "A"
    assert going(made_store.folder) == ""


def test_a_use_is_noted_once_an_hour(made_store: MadeStore) -> None:
    engine = made_store.made("A", days_ago=0.03)
    before = (engine.path.parent / "result.json").stat().st_mtime
    made_store.store.run(Join("A"))
    assert (engine.path.parent / "result.json").stat().st_mtime == before
    used(engine, 0.05)
    made_store.store.run(Join("A"))
    assert (engine.path.parent / "result.json").stat().st_mtime > before


def _run_often(path: str, num: int) -> None:
    store = Store(Path(path))
    for _ in range(num):
        engine = store.run(Join("A"))
        assert engine.path.read_text() == "A", "what a run was served is there"
        used(engine, 30)
        engine = store.run(Join("A"))
        assert engine.path.read_text() == "A"


def test_beside_a_run_what_it_was_served_stays(made_store: MadeStore) -> None:
    process = multiprocessing.get_context("fork").Process(target=_run_often, args=(str(made_store.folder), 60))
    process.start()
    num_removed = 0
    while process.is_alive():
        num_removed += len(sweep(plan_gc(made_store.folder, Rules())))
    process.join()
    assert process.exitcode == 0
    assert num_removed >= 0
    assert list((made_store.folder / "tmp").iterdir()) == []


class Killed(Exception):
    """Stands for a kill: whatever would be tidied up is as it was."""


def test_killed_anywhere(made_store: MadeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result is whole or not there, and the next call with the store removes what is left."""
    for text in "AB":
        made_store.made(text, days_ago=30)
    shutil.copytree(made_store.folder, "template")
    names = ("rename", "unlink", "rmdir")
    real: dict[str, Callable[..., object]] = {name: getattr(os, name) for name in names}
    at, calls = 0, 1
    while calls > at:
        at, calls = at + 1, 0
        shutil.rmtree(made_store.folder)
        shutil.copytree("template", made_store.folder)

        def counting(name: str) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                if calls >= at:  # noqa: B023  # It is called in this turn of the loop.
                    raise Killed
                return real[name](*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, counting(name))
            try:
                sweep(plan_gc(made_store.folder, Rules()))
            except Killed:
                calls = at + 1
        assert verify(made_store.folder).damages == ()
        Store(made_store.folder)
        assert list((made_store.folder / "tmp").iterdir()) == []
        sweep(plan_gc(made_store.folder, Rules()))
        assert made_store.there() == ""
    assert at > 10


def test_on_a_full_disk_it_removes_all_the_same(made_store: MadeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made_store.made("A", days_ago=30)

    def full(path: Path, *_arguments: object, **_options: object) -> None:
        raise FileExistsError if Path(path).exists() else OSError(errno.ENOSPC, "No space left on device")

    plan = plan_gc(made_store.folder, Rules())
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        assert len(sweep(plan)) == 1
    assert made_store.there() == ""


def test_a_result_that_is_gone_is_made_again(made_store: MadeStore) -> None:
    made_store.made("A", days_ago=30)
    sweep(plan_gc(made_store.folder, Rules()))
    assert made_store.made("A").path.read_text() == "A"


def test_a_signature_goes_with_its_engine(made_store: MadeStore, command: Command) -> None:
    """Not one of a baseline's, nor of an engine that stays, nor what was signed today."""
    engines = [made_store.made(text, days_ago=days) for text, days in (("A", 30.0), ("B", 30.0), ("C", 1.0))]
    set_as_baseline(engines[1].path)
    used(engines[1], 30)
    folder = made_store.folder / "signatures"
    folder.mkdir()
    then = time.time() - 2 * DAY_SECONDS
    names = [*(sha256_of(engine.path) for engine in engines), "0" * 64]
    for name in names:
        (folder / f"{name}.dsse.json").write_text("{}")
        os.utime(folder / f"{name}.dsse.json", (then, then))
    (folder / f"{'1' * 64}.dsse.json").write_text("{}")
    assert "signatures" in command("store", "size").out
    told = command("store", "gc")
    assert "would remove 2 signatures of engines that are gone" in told.out
    assert len(list(folder.iterdir())) == 5
    assert "removed 2 signatures" in command("store", "gc", "--delete").out
    assert {file.name[:64] for file in folder.iterdir()} == {names[1], names[2], "1" * 64}


def test_trainings_that_nothing_takes_up_again_go_but_not_those_at_work(
    made_store: MadeStore, command: Command
) -> None:
    folders = [made_store.folder / "tmp" / f".train-{name}" for name in ("left", "working", "young")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(b"state")
        (folder / "lock").touch()
    for folder in folders[:2]:
        os.utime(folder, (1e9, 1e9))
    told = command("store", "gc", "--store", made_store.folder)
    assert "would remove 2 trainings that were interrupted and not taken up again" in told.out
    assert "nothing was removed; to remove them: " in told.err
    with (folders[1] / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command("store", "gc", "--store", made_store.folder, "--delete").status == 0
    assert [folder.exists() for folder in folders] == [False, True, True]
