"""What a device sends is held to what a run makes, before a byte of it is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifact import sha256_of
from pipeline.errors import ConfigError, DataError, StageError
from pipeline.remote.fetched import MOST_FILES, FetchedFiles, RemoteFile, files_from_answer, settle, taken_from_before
from pipeline.remote.job import MOST_LINE, PrintedLines, check_folder, keep_from_before

SUM = "0" * 64


def listed(**files: Any) -> dict[str, Any]:
    return {"files": files}


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "report/../../evil",
        "/etc/passwd",
        "report//x",
        "report/./x",
        "",
        "evil",
        "evil/x",
        "report",
        "log.txt/x",
        "engines/.ssh/authorized_keys",
        ".bashrc",
        "report/a\nb",
        "report/\x1b[2J",
        "report\\x",
        "report/" + "x" * 256,
        "report/a/b/c/d/e/f",
        "report/\u202etxt.exe",
    ],
)
def test_names_that_no_run_writes(name: str) -> None:
    with pytest.raises(DataError, match=r"^orin: sends a file .*nothing is taken$") as error:
        files_from_answer(listed(**{name: [1, SUM]}), "orin")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "row", [None, 7, [1], [1, SUM, 2], ["1", SUM], [True, SUM], [-1, SUM], [1, "x"], [1, SUM.upper() + "A"]]
)
def test_rows_that_say_nothing(row: Any) -> None:
    with pytest.raises(DataError, match=r"says of 'report/a' neither size nor SHA-256"):
        files_from_answer(listed(**{"report/a": row}), "orin")


@pytest.mark.parametrize("files", [None, [], "x", {f"report/{number}": [0, SUM] for number in range(MOST_FILES + 1)}])
def test_lists_that_are_none(files: Any) -> None:
    with pytest.raises(DataError, match="sends no list of files, or one of more than 10000"):
        files_from_answer({"files": files}, "orin")


def test_a_name_that_is_a_file_and_a_folder() -> None:
    with pytest.raises(DataError, match="sends 'report/a' as a file and as a folder"):
        files_from_answer(listed(**{"report/a": [1, SUM], "report/a/b": [1, SUM]}), "orin")


def test_a_list_as_it_should_be() -> None:
    names = ["log.txt", "report/report.json", "engines/int8@tensorrt/model.plan", "gate/samples/a.npz"]
    files = files_from_answer(listed(**{name: [number, SUM] for number, name in enumerate(names)}), "orin")
    assert files == tuple(RemoteFile(name, number, SUM) for number, name in enumerate(names))


def remote(name: str, data: bytes) -> RemoteFile:
    return RemoteFile(name, len(data), hashlib.sha256(data).hexdigest())


def test_bytes_become_files_in_any_pieces(tmp_path: Path) -> None:
    contents = {"report/a": b"one", "report/empty": b"", "log.txt": b"printed", "engines/x/last": b""}
    fetched = FetchedFiles([remote(name, data) for name, data in contents.items()], tmp_path, "orin")
    for byte in b"".join(contents.values()):
        fetched.take(bytes([byte]))
    fetched.check_whole()
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents


def test_more_less_and_other_bytes_are_refused(tmp_path: Path) -> None:
    files = [remote("report/a", b"one")]
    for folder in "abc":
        (tmp_path / folder).mkdir()
    more = FetchedFiles(files, tmp_path / "a", "orin")
    with pytest.raises(DataError, match="orin: sends more than it said; nothing of it is taken"):
        more.take(b"one and more")
    less = FetchedFiles(files, tmp_path / "b", "orin")
    less.take(b"on")
    less.close()
    with pytest.raises(DataError, match="orin: sends less than it said"):
        less.check_whole()
    other = FetchedFiles(files, tmp_path / "c", "orin")
    with pytest.raises(DataError, match=r"'report/a' was changed on the way \(SHA-256 differs\); run again"):
        other.take(b"two")


def test_what_is_here_is_not_fetched_again(tmp_path: Path) -> None:
    before, new = tmp_path / "before", tmp_path / "new"
    for folder in (before / "report", new):
        folder.mkdir(parents=True)
    (before / "report/same").write_bytes(b"same")
    (before / "report/other").write_bytes(b"old!")
    (before / "link").symlink_to(before / "report/same")
    files = [remote("report/same", b"same"), remote("report/other", b"new!"), remote("link", b"same")]
    assert taken_from_before(files, before, new) == files[1:]
    assert [path.name for path in sorted(new.rglob("*"))] == ["report", "same"]


def test_records_name_the_engines_that_are_here(tmp_path: Path) -> None:
    new, final = tmp_path / "new", tmp_path / "final"
    for name, text in {
        "engines/int8@x/model.plan": "engine",
        "engines/int8@x/record.json": '{"backend": "tensorrt"}',
        "report/report.json": '{"variants": [{"name": "int8@x", "artifact": "/home/me/.trtforge/store/model.plan"}]}',
        "gate/gate.json": '{"engines": [{"name": "int8@x", "path": "../s/model.plan"}, {"name": "b", "path": "y"}]}',
    }.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_text(text)
    assert settle(new, final, "orin") == {"int8@x": final / "engines/int8@x/model.plan"}
    engine = str(final / "engines/int8@x/model.plan")
    assert json.loads((new / "report/report.json").read_text())["variants"][0]["artifact"] == engine
    assert [row["path"] for row in json.loads((new / "gate/gate.json").read_text())["engines"]] == [engine, "y"]
    record = json.loads((new / "engines/int8@x/model.plan.json").read_text())
    assert record == {"backend": "tensorrt", "sha256": hashlib.sha256(b"engine").hexdigest()}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", "{}", '{"variants": 3}', '{"variants": [3]}', '{"variants": [{"name": 3}]}', "[" * 100_000, "\xff"],
)
def test_records_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StageError, match=r"^orin: sends a report.json that is none .*; nothing of it is taken$"):
        settle(tmp_path, tmp_path / "final", "orin")


def test_records_name_engines_that_are_folders(tmp_path: Path) -> None:
    new, final = tmp_path / "new", tmp_path / "final"
    (new / "engines/int8@x/model.ort").mkdir(parents=True)
    (new / "engines/int8@x/model.ort/part").write_text("engine")
    (new / "engines/int8@x/record.json").write_text('{"backend": "onnxruntime_tensorrt"}')
    (new / "gate").mkdir()
    rows = [{"name": "int8@x", "path": "../s/model.ort"}]
    rows += [{"name": "int8@x/model.ort", "path": path} for path in (".", "..", "/")]
    (new / "gate/gate.json").write_text(json.dumps({"engines": rows}))
    assert settle(new, final, "orin") == {"int8@x": final / "engines/int8@x/model.ort"}
    record = json.loads((new / "engines/int8@x/model.ort.json").read_text())
    assert record == {"backend": "onnxruntime_tensorrt", "sha256": sha256_of(new / "engines/int8@x/model.ort")}


@pytest.mark.parametrize("name", ["../../evil", "int8@x/../..", "/etc"])
def test_variants_whose_names_lead_elsewhere_are_no_engines(tmp_path: Path, name: str) -> None:
    new = tmp_path / "new"
    (new / "report").mkdir(parents=True)
    (tmp_path / "evil").write_text("")
    record = {"variants": [{"name": name, "artifact": "passwd"}, {"name": name, "artifact": ".."}]}
    (new / "report/report.json").write_text(json.dumps(record))
    assert settle(new, tmp_path / "final", "orin") == {}


def test_what_an_earlier_run_of_another_verb_brought_stays(tmp_path: Path) -> None:
    new, final = tmp_path / "new", tmp_path / "final"
    for path in (
        final / "report",
        final / "gate",
        final / "engines/a",
        final / "engines/b",
        new / "gate",
        new / "engines/b",
    ):
        path.mkdir(parents=True)
    assert sorted(keep_from_before(new, final)) == ["engines/a", "report"]
    assert list(keep_from_before(new, tmp_path / "none")) == []


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "trtforge-on-orin"
    check_folder(folder)
    folder.mkdir()
    check_folder(folder)
    (folder / "log.txt").write_text("")
    check_folder(folder)
    (folder / "mine").write_text("")
    with pytest.raises(ConfigError, match=r"--on: .*mine exists, but the folder of a device is replaced as a whole"):
        check_folder(folder)


def test_what_a_device_prints_moves_no_cursor() -> None:
    lines: list[str] = []
    printed = PrintedLines(lines.append)
    for byte in "a\x1b[2J\x07\r\nzwölf\ttab\n\x9b31m".encode():
        printed.take(bytes([byte]))
    printed.take(b"\xff\n" + b"x" * (MOST_LINE + 1))
    printed.take(b"", final=True)
    assert lines == [r"a\x1b[2J\x07\x0d", "zwölf\ttab", "\\x9b31m\ufffd", "x" * MOST_LINE]
