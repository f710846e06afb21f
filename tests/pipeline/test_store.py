"""The store: made once, never stale, never half, right when several write at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from calibration import file_digest
from pipeline import store as store_module
from pipeline.artifact import OnnxModel, Ranges, artifact_from_record, digest_of_path, plain, record_from_artifact
from pipeline.errors import ConfigError, Unavailable
from pipeline.machine.digest_table import DigestTable
from pipeline.store import Store, canonical


@dataclass(frozen=True)
class Upper:
    """A stage for the tests: the input's text in capitals."""

    suffix: str = ""
    tool: str = "1.0"

    def versions(self, *_inputs: object) -> dict[str, str]:
        return {"tool": self.tool}

    def __call__(self, out: Path, model: OnnxModel) -> OnnxModel:
        (out / "model.onnx").write_text(model.path.read_text().upper() + self.suffix)
        (out / "notes.json").write_text('["seen"]')
        return OnnxModel(out / "model.onnx")


ERRORS: dict[str, BaseException] = {
    "bug": ValueError("bug"),
    "ctrl-C": KeyboardInterrupt(),
    "full": OSError(28, "No space left on device"),
}


@dataclass(frozen=True)
class Failing:
    """A stage that writes something and then fails."""

    error: str

    def __call__(self, out: Path, model: OnnxModel) -> OnnxModel:
        (out / "half").write_text("half")
        raise ERRORS[self.error]


@dataclass(frozen=True)
class Slow:
    """A stage that says that it is at work and then takes long."""

    seconds: float = 60.0

    def __call__(self, out: Path, model: OnnxModel) -> OnnxModel:
        (out / "model.onnx").write_text("slow")
        (model.path.parent / "at-work").write_text(str(os.getpid()))
        time.sleep(self.seconds)
        return OnnxModel(out / "model.onnx")


@pytest.fixture(autouse=True)
def _known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages above are no modules of the project; each has a name of its own."""
    monkeypatch.setattr(store_module, "stage_name", lambda stage: type(stage).__name__.lower())


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    file = tmp_path / "in.onnx"
    file.write_text("abc")
    return OnnxModel(file)


def results(store: Store) -> list[Path]:
    return sorted(p.parent for p in store.folder.glob("*/*/result.json"))


def test_a_result_is_made_once_and_then_served(tmp_path: Path, model: OnnxModel) -> None:
    store = Store(tmp_path / "s")
    first = store.run(Upper(), model)
    second = Store(tmp_path / "s").run(Upper(), model)
    assert first == second
    assert first.path.read_text() == "ABC"
    assert first.notes() == ["seen"]
    assert [entry.served for entry in store.account] == [False]
    assert len(results(store)) == 1


def test_each_result_is_told_as_it_comes(tmp_path: Path, model: OnnxModel) -> None:
    told: list[tuple[str, bool]] = []
    store = Store(tmp_path / "s", lambda entry: told.append((entry.stage, entry.served)))
    store.run(Upper(), model)
    assert told == [("upper", False)]
    store.run(Upper(), model)
    assert told == [("upper", False), ("upper", True)]


def test_the_account_has_variants_and_times_and_only_what_works_says_so(tmp_path: Path, model: OnnxModel) -> None:
    told: list[str] = []

    @contextmanager
    def working(what: str) -> Iterator[None]:
        told.append(what)
        yield

    store = Store(tmp_path / "s", working=working)
    with store.about("int8@reference"):
        store.run(Upper(), model)
    store.run(Upper(), model)
    assert [(entry.served, entry.variant) for entry in store.account] == [(False, "int8@reference"), (True, "")]
    assert all(entry.seconds > 0 and entry.cpu_seconds >= 0 for entry in store.account)
    assert told == [f"{store.account[0].stage} int8@reference"]


def test_every_input_changes_the_recipe(tmp_path: Path, model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "s")
    store.run(Upper(), model)
    store.run(Upper(suffix="!"), model)
    store.run(Upper(tool="2.0"), model)
    model.path.write_text("abd")
    store.run(Upper(), model)
    monkeypatch.setattr(store_module, "source_digest", lambda *_modules: "edited source")
    store.run(Upper(), model)
    assert [entry.served for entry in store.account] == [False] * 5
    assert len(results(store)) == 5


def test_content_counts_and_the_path_does_not(tmp_path: Path, model: OnnxModel) -> None:
    store = Store(tmp_path / "s")
    store.run(Upper(), model)
    moved = tmp_path / "elsewhere.onnx"
    moved.write_text("abc")
    store.run(Upper(), OnnxModel(moved))
    assert [entry.served for entry in store.account] == [False, True]


@pytest.mark.parametrize("error", ["bug", "ctrl-C"])
def test_a_failed_stage_leaves_nothing(tmp_path: Path, model: OnnxModel, error: str) -> None:
    store = Store(tmp_path / "s")
    with pytest.raises(type(ERRORS[error])):
        store.run(Failing(error), model)
    assert results(store) == []
    assert list((store.folder / "tmp").iterdir()) == []


def test_a_full_disk_is_said_in_one_sentence_and_leaves_nothing(tmp_path: Path, model: OnnxModel) -> None:
    store = Store(tmp_path / "s")
    with pytest.raises(Unavailable, match=r"the disk is full .* free some space and run again"):
        store.run(Failing("full"), model)
    assert list((store.folder / "tmp").iterdir()) == []


def test_a_real_full_disk(tmp_path: Path, model: OnnxModel) -> None:
    """/dev/full answers every write with ENOSPC."""

    @dataclass(frozen=True)
    class Full:
        def __call__(self, out: Path, model: OnnxModel) -> OnnxModel:
            Path("/dev/full").write_text("x" * 10_000)
            return model

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(Unavailable, match="the disk is full"):
        Store(tmp_path / "s").run(Full(), model)


def test_a_damaged_result_is_made_again(tmp_path: Path, model: OnnxModel, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "s")
    made = store.run(Upper(), model)
    made.path.write_text("AB")
    again = Store(tmp_path / "s").run(Upper(), model)
    assert again.path.read_text() == "ABC"
    assert "damaged, its bytes are not those that were published; making it again" in caplog.text


def test_a_damaged_result_is_found_in_another_process_too(
    tmp_path: Path, model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file's content was is remembered by its identity, and damage by a write is another identity."""
    monkeypatch.setattr(file_digest, "SETTLED_NS", -(10**18))  # Every file counts as settled.
    monkeypatch.setattr(file_digest._Memory, "table", {})
    file_digest.remember_in(digest_table := DigestTable(tmp_path / "digests.sqlite"))
    made = Store(tmp_path / "s").run(Upper(), model)
    digest_table.save()
    for damage, served in (("", True), ("AB", False), ("XYZ", False)):
        file_digest.remember_in(DigestTable(tmp_path / "digests.sqlite"))
        if damage:
            times = made.path.stat()
            made.path.write_text(damage)
            os.utime(made.path, ns=(times.st_atime_ns, times.st_mtime_ns))  # Its ctime tells all the same.
        store = Store(tmp_path / "s")
        assert store.run(Upper(), model).path.read_text() == "ABC"
        assert [entry.served for entry in store.account] == [served]


def test_a_program_that_was_changed_while_it_ran_leaves_nothing(
    tmp_path: Path, model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(*modules: str) -> None:
        raise Unavailable(f"{modules[0]}: was changed")

    store = Store(tmp_path / "s")
    monkeypatch.setattr(store_module, "check_unchanged", changed)
    for run in (store.run, store.measure):
        with pytest.raises(Unavailable, match="was changed"):
            run(Upper(), model)
    assert results(store) == []
    assert list((store.folder / "tmp").iterdir()) == []


def test_modules_that_are_loaded_by_name_are_in_the_recipe(
    tmp_path: Path, model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "source_digest", lambda *modules: " ".join(modules))
    plain_recipe = Store(tmp_path / "s").recipe(Upper(), model)
    monkeypatch.setattr(Upper, "modules", lambda self, *inputs: ("engines.reference",), raising=False)
    assert Store(tmp_path / "s").recipe(Upper(), model)["source"] == f"{plain_recipe['source']} engines.reference"


def test_a_truncated_result_record_is_made_again(tmp_path: Path, model: OnnxModel) -> None:
    store = Store(tmp_path / "s")
    made = store.run(Upper(), model)
    (made.path.parent / "result.json").write_text('{"arti')
    assert Store(tmp_path / "s").run(Upper(), model).path.read_text() == "ABC"


def _run_slow(folder: str, path: str, seconds: float) -> None:
    store_module.stage_name = lambda stage: type(stage).__name__.lower()
    Store(Path(folder)).run(Slow(seconds), OnnxModel(Path(path)))


def test_kill_leaves_nothing_that_counts_and_the_next_run_cleans_up(tmp_path: Path, model: OnnxModel) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run_slow, args=(str(tmp_path / "s"), str(model.path), 60.0))
    process.start()
    while not (tmp_path / "at-work").exists():
        assert process.is_alive()
        time.sleep(0.01)
    bystander = Store(tmp_path / "s")
    assert len(list((bystander.folder / "tmp").iterdir())) == 1, "what is at work must be left alone"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    store = Store(tmp_path / "s")
    assert list((store.folder / "tmp").iterdir()) == []
    assert results(store) == []
    assert store.run(Slow(0.0), model).path.read_text() == "slow"


def test_two_processes_make_the_same_result_and_both_are_right(tmp_path: Path, model: OnnxModel) -> None:
    context = multiprocessing.get_context("fork")
    args = (str(tmp_path / "s"), str(model.path), 0.3)
    racers = [context.Process(target=_run_slow, args=args) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    store = Store(tmp_path / "s")
    assert len(results(store)) == 1
    assert list((store.folder / "tmp").iterdir()) == []


def test_measurements_are_added_and_never_served(tmp_path: Path, model: OnnxModel) -> None:
    store = Store(tmp_path / "s")
    first, second = store.measure(Upper(), model), store.measure(Upper(), model)
    assert first.path != second.path
    assert [entry.served for entry in store.account] == [False, False]


def test_find_takes_the_beginning_of_a_digest(tmp_path: Path, model: OnnxModel) -> None:
    store = Store(tmp_path / "s")
    made = store.run(Upper(), model)
    assert store.find(store.account[0].digest[:8]) == made.path.parent
    assert store.find(made.digest()[:8]) == made.path.parent
    assert store.makers() == {made.digest(): made.path.parent}
    with pytest.raises(ConfigError, match=r"digest 'zz': no result in .*; give one that `trtforge run` printed"):
        store.find("zz")


def test_a_damaged_record_hides_no_other_result(tmp_path: Path, model: OnnxModel) -> None:
    store = Store(tmp_path / "s")
    kept, damaged = store.run(Upper(), model), store.run(Upper(suffix="!"), model)
    (damaged.path.parent / "result.json").write_text("{")
    assert store.makers() == {kept.digest(): kept.path.parent}
    assert store.find(kept.digest()[:12]) == kept.path.parent


def test_a_folder_that_cannot_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be used as a store .*; name another with --store"):
        Store(tmp_path / "file" / "s")


def test_canonical_json_has_one_form() -> None:
    assert canonical({"b": 1, "a": [1.5, None, True]}) == '{"a":[1.5,null,true],"b":1}'


def test_a_value_that_cannot_stand_in_a_recipe_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot stand in a recipe"):
        plain(object())
    assert plain(float("inf")) == "inf"


def test_artifacts_survive_their_record(tmp_path: Path) -> None:
    folder = tmp_path / "ranges"
    folder.mkdir()
    (folder / "a").write_text("1")
    artifact = Ranges(folder)
    record = json.loads(json.dumps(record_from_artifact(artifact, tmp_path)))
    assert artifact_from_record(record, tmp_path) == artifact


def test_a_folders_digest_sees_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1")
    before = digest_of_path(tmp_path / "d")
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    renamed = digest_of_path(tmp_path / "d")
    (tmp_path / "d" / "b").write_text("2")
    assert len({before, renamed, digest_of_path(tmp_path / "d")}) == 3


@pytest.mark.parametrize("change", ["garbage", None])
def test_what_lies_beside_a_result_counts_too(
    change: str | None, tmp_path: Path, model: OnnxModel, caplog: pytest.LogCaptureFixture
) -> None:
    made = Store(tmp_path / "s").run(Upper(), model)
    notes = made.beside("notes.json")
    if change is None:
        notes.unlink()
    else:
        notes.write_text(change)
    again = Store(tmp_path / "s")
    assert again.run(Upper(), model).notes() == ["seen"]
    assert not again.account[0].served
    assert "damaged, a file beside it is not as it was published; making it again" in caplog.text


def test_results_of_earlier_versions_are_served(tmp_path: Path, model: OnnxModel) -> None:
    made = Store(tmp_path / "s").run(Upper(), model)
    sealed = json.loads(made.beside("result.json").read_text())
    del sealed["files"]
    made.beside("result.json").write_text(json.dumps(sealed))
    store = Store(tmp_path / "s")
    store.run(Upper(), model)
    assert store.account[0].served


def test_what_is_not_ours_in_tmp_is_left_alone(tmp_path: Path, model: OnnxModel) -> None:
    (tmp_path / "s" / "tmp").mkdir(parents=True)
    (tmp_path / "s" / "tmp" / ".DS_Store").write_text("x")
    Store(tmp_path / "s").run(Upper(), model)
    assert (tmp_path / "s" / "tmp" / ".DS_Store").exists()


def test_a_group_can_share_a_store(tmp_path: Path, model: OnnxModel) -> None:
    """Whatever the umask of who makes something, all in a store has the modes of its folder."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o2775)
    before = os.umask(0o077)
    try:
        Store(tmp_path / "s").run(Upper(), model)
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path): oct(path.stat().st_mode & 0o7777) for path in (tmp_path / "s").rglob("*")}
    assert len(modes) == 7, "tmp, the stage's folder, the result's, and four files"
    expected = {path: "0o2775" if (tmp_path / path).is_dir() else "0o664" for path in modes}
    assert modes == expected


def test_what_processes_left_in_tmp_is_removed_wherever_they_died(tmp_path: Path, model: OnnxModel) -> None:
    tmp = tmp_path / "s" / "tmp"
    for name, files in {"abcdefg1": [], "abcdefg2": ["lock"], "abcdefg3": ["lock", "half"], "their-own": []}.items():
        (tmp / name).mkdir(parents=True)
        for file in files:
            (tmp / name / file).touch()
    (tmp / "abcdefg4").mkdir()
    (tmp / "abcdefg4" / "no-lock").touch()
    Store(tmp_path / "s").run(Upper(), model)
    assert sorted(path.name for path in tmp.iterdir()) == ["abcdefg4", "their-own"], "what is not ours stays"


def test_a_lock_in_a_result_is_no_damage(tmp_path: Path, model: OnnxModel) -> None:
    """A process that was killed right after it published leaves one."""
    made = Store(tmp_path / "s").run(Upper(), model)
    made.beside("lock").touch()
    store = Store(tmp_path / "s")
    store.run(Upper(), model)
    assert [entry.served for entry in store.account] == [True]
