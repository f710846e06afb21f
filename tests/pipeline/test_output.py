"""One result at the user's path: it appears whole or not at all."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import output
from pipeline.artifact import Engine, OnnxModel, Ranges
from pipeline.errors import ConfigError, Unavailable
from pipeline.output import (
    check_file_target,
    check_folder_target,
    checked_record,
    locked_folder,
    make,
    passing_folder,
    put,
    record_of,
    work_folder,
)


def text_to(folder: Path, text: str) -> OnnxModel:
    (folder / "model.onnx").write_text(text)
    return OnnxModel(folder / "model.onnx")


def test_make_puts_the_artifact_and_nothing_else(tmp_path: Path) -> None:
    made = make(tmp_path / "new" / "x.onnx", lambda out: text_to(out, "one"))
    assert made == OnnxModel(tmp_path / "new" / "x.onnx")
    assert made.path.read_text() == "one"
    make(made.path, lambda out: text_to(out, "two"))
    assert made.path.read_text() == "two"
    assert [path.name for path in made.path.parent.iterdir()] == ["x.onnx"]


def test_make_keeps_the_old_file_when_the_stage_fails(tmp_path: Path) -> None:
    target = tmp_path / "x.onnx"
    target.write_text("old")

    def failing(out: Path) -> OnnxModel:
        text_to(out, "half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make(target, failing)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.onnx", "old")]


def test_make_writes_the_record_with_the_artifacts_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def build(out: Path) -> Engine:
        (out / "model.plan").write_text("engine")
        (out / "record.json").write_text(json.dumps({"backend": "tensorrt", "size_bytes": 6}))
        (out / "notes.json").write_text(json.dumps(["TF32 is on"]))
        return Engine(out / "model.plan", "tensorrt", min_batch=2, max_batch=8)

    make(tmp_path / "e.plan", build)
    found = record_of(tmp_path / "e.plan")
    assert (found["backend"], found["size_bytes"], found["min_batch"], found["max_batch"]) == ("tensorrt", 6, 2, 8)
    assert capsys.readouterr() == ("", "trtforge: e.plan: TF32 is on\n")
    make(tmp_path / "e.plan", lambda out: text_to(out, "no engine"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.plan"]


def test_make_leaves_a_users_own_json_alone(tmp_path: Path) -> None:
    (tmp_path / "x.onnx.json").write_text('{"mine": 1}')
    make(tmp_path / "x.onnx", lambda out: text_to(out, "one"))
    assert (tmp_path / "x.onnx.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_a_record_that_is_none_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.onnx.json").write_text(text, encoding="latin-1")
    assert record_of(tmp_path / "x.onnx") == {}


def test_make_replaces_a_folder_of_ranges(tmp_path: Path) -> None:
    def ranges(out: Path) -> Ranges:
        (out / "ranges").mkdir()
        (out / "ranges" / "ranges.json").write_text("new")
        return Ranges(out / "ranges")

    target = tmp_path / "r"
    for _ in range(2):
        check_folder_target(target)
        make(target, ranges)
    (target / "ranges.json").write_text("old")
    (target / "stale.txt").write_text("old")
    make(target, ranges)
    assert [(path.name, path.read_text()) for path in target.iterdir()] == [("ranges.json", "new")]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_targets_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("")
    check_file_target(tmp_path / "file")
    check_file_target(tmp_path / "new")
    check_folder_target(tmp_path / "empty")
    check_folder_target(tmp_path / "new")
    with pytest.raises(ConfigError, match="empty: is a folder; give the path of a file with -o"):
        check_file_target(tmp_path / "empty")
    with pytest.raises(ConfigError, match="null: is not a plain file, and would be replaced by one; give"):
        check_file_target(Path("/dev/null"))
    with pytest.raises(ConfigError, match="file: is a file; give the path of a folder with -o"):
        check_folder_target(tmp_path / "file")
    with pytest.raises(ConfigError, match="taken: is a folder with other files in it; give a new path with -o"):
        check_folder_target(tmp_path / "taken")


def test_two_that_write_one_folder_at_once_are_both_right(tmp_path: Path) -> None:
    target = tmp_path / "ranges"

    def stage(out: Path) -> Ranges:
        (out / "made").mkdir()
        for name in ("ranges.json", "histograms.npz"):
            (out / "made" / name).write_text(str(out))
        return Ranges(out / "made")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: make(target, stage), range(400)))
    assert len({file.read_text() for file in target.iterdir()}) == 1
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(Unavailable, match="x: the disk is full; free some space and run again"),
        work_folder(tmp_path / "x"),
    ):
        raise OSError(number, "full")
    assert list(tmp_path.iterdir()) == []


def test_another_trouble_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="broken"), work_folder(tmp_path / "x"):
        raise OSError(errno.EIO, "broken")
    assert list(tmp_path.iterdir()) == []


def test_the_real_thing_of_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="the disk is full"), work_folder(tmp_path / "x"):
        Path("/dev/full").write_text("x")


def test_work_is_done_on_the_same_disk(tmp_path: Path) -> None:
    with work_folder(tmp_path / "deep" / "x") as work:
        assert work.parent == tmp_path / "deep"
        assert work.name.startswith(".x.")
    with passing_folder(tmp_path / "y") as work:
        assert work.parent == tmp_path
    with passing_folder(None) as work:
        assert tmp_path not in work.parents
        assert work.is_dir()
    assert not work.exists()


def test_what_a_killed_process_left_is_removed_and_what_others_work_in_is_not(tmp_path: Path) -> None:
    target = tmp_path / "x.onnx"
    left, foreign = tmp_path / ".x.onnx.abcdefg1", tmp_path / ".x.onnx.mine-own"
    for folder in (left, foreign):
        folder.mkdir()
    (left / "lock").touch()
    with work_folder(target) as others:
        make(target, lambda out: text_to(out, "new"))
        assert others.is_dir()
    assert not left.exists()
    assert foreign.is_dir()
    assert target.read_text() == "new"


def test_a_folder_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, aside = (tmp_path / name for name in ("old", "new", "aside"))
    for folder in (old, new, aside):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("it goes away first"))
    put(new, old, aside)
    assert (old / "name").read_text() == "new"


def test_where_the_system_cannot_exchange_it_goes_aside_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, aside = (tmp_path / name for name in ("old", "new", "aside"))
    for folder in (old, new, aside):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    monkeypatch.setattr(output, "exchanged", lambda *_: False)
    put(new, old, aside)
    assert (old / "name").read_text() == "new"
    assert (aside / "replaced0" / "name").read_text() == "old"


def engine_of(folder: Path, text: str) -> Engine:
    (folder / "model.plan").write_text(text)
    (folder / "record.json").write_text(json.dumps({"backend": "tensorrt", "engine": text}))
    return Engine(folder / "model.plan", "tensorrt")


@pytest.mark.parametrize("new", ["an engine", "a model without a record"])
def test_an_engine_and_its_record_change_at_once(new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each rename in turn, whoever dies there leaves the old pair or the new one."""
    target = tmp_path / "e.plan"
    make(target, lambda out: engine_of(out, "old"))
    seen: list[tuple[str, str]] = []

    def watched(made: Path, where: Path, aside: Path) -> None:
        put(made, where, aside)
        checked_record(target)
        seen.append((target.read_text(), record_of(target).get("engine", "none")))

    monkeypatch.setattr(output, "put", watched)
    if new == "an engine":
        make(target, lambda out: engine_of(out, "new"))
        assert seen == [("old", "old"), ("new", "new"), ("new", "new")]
        assert sorted(json.loads((tmp_path / "e.plan.json").read_text())) == [
            "backend", "engine", "max_batch", "min_batch", "sha256", "signature", "simulated",
        ]  # fmt: skip
    else:
        make(target, lambda out: text_to(out, "new"))
        assert seen == [("old", "old"), ("new", "none")]
        assert not (tmp_path / "e.plan.json").exists()


def test_the_record_of_another_file_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "e.plan", lambda out: engine_of(out, "old"))
    (tmp_path / "e.plan").write_text("copied over it")
    assert record_of(tmp_path / "e.plan") == {}
    with pytest.raises(ConfigError, match=r"e.plan: e.plan.json beside it is the record of another file .* copy both"):
        checked_record(tmp_path / "e.plan")
    make(tmp_path / "e.plan", lambda out: engine_of(out, "new"))
    assert record_of(tmp_path / "e.plan")["engine"] == "new"


def test_a_record_of_before_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "e.plan").write_text("engine")
    (tmp_path / "e.plan.json").write_text('{"backend": "tensorrt"}')
    checked_record(tmp_path / "e.plan")
    assert record_of(tmp_path / "e.plan") == {"backend": "tensorrt"}


def test_a_work_folder_that_others_took_for_a_dead_ones_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock."""
    made: list[Path] = []

    def flock(stream: object, kind: int) -> None:
        work = next(tmp_path.iterdir())
        if not made:
            made.append(work)
            (work / "lock").unlink()
            work.rmdir()

    monkeypatch.setattr("fcntl.flock", flock)
    with locked_folder(tmp_path, "x.") as work:
        assert work.is_dir()
        assert work != made[0]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_does_not_change_places_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    (tmp_path / "made").write_text("new")
    with pytest.raises(ConfigError, match="there: is a folder, and a file of this name is written there; move it away"):
        output.put(tmp_path / "made", tmp_path / "there", tmp_path)
    assert (tmp_path / "there" / "mine").read_text() == "mine"
