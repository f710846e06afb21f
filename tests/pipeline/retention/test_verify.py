"""Every byte is read: damage that no time tells is found, set aside, and made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration import file_digest
from pipeline.retention.pins import pin
from pipeline.retention.verify import verify
from pipeline.store import Store
from tests.pipeline.retention.made_store import Join, MadeStore
from tests.pipeline.retention.test_gc import set_as_baseline


def test_all_is_as_it_was_published(made_store: MadeStore) -> None:
    set_as_baseline(made_store.made("A").path)
    pin(made_store.folder, "net", ["a"])
    made_store.store.measure(Join("timed"))
    verified = verify(made_store.folder)
    assert (verified.num_results, verified.num_generations, verified.damages) == (2, 1, ())


def test_what_the_disk_lost_is_found_though_its_digest_is_remembered(
    made_store: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digest, "SETTLED_NS", -(10**18))  # Every file counts as settled.
    table: dict[str, str] = {}
    file_digest.remember_in(table)
    engine = made_store.made("AB")
    state = engine.path.stat()
    engine.path.write_text("AC")
    changed = engine.path.stat()
    for key in list(table):  # As if nobody had written: the state that is remembered is that of now.
        if f" {state.st_ino} " in key:
            table[key.replace(str(state.st_mtime_ns), str(changed.st_mtime_ns)).replace(
                str(state.st_ctime_ns), str(changed.st_ctime_ns))] = table[key]  # fmt: skip
    store = Store(made_store.folder)
    store.run(Join("AB"))
    assert store.account[0].served, "a run believes what is remembered"
    (damage,) = verify(made_store.folder).damages
    assert damage.path == engine.path.parent
    assert damage.problem == "its bytes are not those that were published"
    assert damage.aside == made_store.folder / "damaged" / "join" / engine.path.parent.name
    assert (damage.aside / "engine.plan").read_text() == "AC"
    assert file_digest.remembered_in() is table
    assert made_store.made("AB").path.read_text() == "AB"
    assert verify(made_store.folder).damages == ()


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("engine.plan", "x", "its bytes are not those that were published"),
        ("beside", "x", "a file beside it is not as it was published"),
        ("recipe.json", "{}", "a file beside it is not as it was published"),
        ("result.json", "{", "it cannot be read"),
        ("result.json", None, "it has no result.json"),
    ],
)
def test_each_damage_is_set_aside(made_store: MadeStore, file: str, text: str | None, problem: str) -> None:
    for number in (1, 2):
        folder = made_store.made("A").path.parent
        if text is None:
            (folder / file).unlink()
        else:
            (folder / file).write_text(text)
        (damage,) = verify(made_store.folder).damages
        assert damage.problem.startswith(problem)
        assert damage.aside is not None
        assert damage.aside.name == folder.name + ("-2" if number == 2 else "")
        assert not folder.exists()


def test_a_recipe_of_another_result_is_damage(made_store: MadeStore) -> None:
    folder = made_store.made("A").path.parent
    folder.rename(folder.with_name("0" * 64))
    (damage,) = verify(made_store.folder).damages
    assert damage.problem == "its recipe is that of another"


def test_baselines_and_records_are_read_and_stay_where_they_are(made_store: MadeStore) -> None:
    for text in "AB":
        set_as_baseline(made_store.made(text).path)
    pin(made_store.folder, "net", ["a"])
    generations = made_store.folder / "baselines" / ".generations" / "good"
    (generations / "1" / "baseline.json").write_text("{")
    (generations / "withdrawn.json").write_text("{")
    (made_store.folder / "pins" / "net.json").write_text("{")
    damages = verify(made_store.folder).damages
    assert [(damage.path.name, damage.aside) for damage in damages] == [
        ("1", None), ("withdrawn.json", None), ("net.json", None),
    ]  # fmt: skip
    assert (generations / "1").is_dir()


def test_what_is_not_ours_is_let_be(made_store: MadeStore) -> None:
    for name in ("notes/theirs", "join/theirs", "tmp/abcdefgh"):
        (made_store.folder / name).mkdir(parents=True)
    (made_store.folder / "join" / ("0" * 64)).symlink_to("nowhere")
    assert verify(made_store.folder).damages == ()
    assert (made_store.folder / "join/theirs").is_dir()


def test_a_result_of_an_earlier_version_is_whole(made_store: MadeStore) -> None:
    record = made_store.made("A").path.parent / "result.json"
    sealed = json.loads(record.read_text())
    record.write_text(json.dumps({key: sealed[key] for key in ("artifact", "content")}))
    assert verify(made_store.folder).damages == ()
    assert Path(record).exists()
