"""What unpacks a bundle on a device, before anything is installed: nothing is written that is not held to its sum."""

from __future__ import annotations

import ast
import os
import runpy
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.bundle import CACHE, MANIFEST, OURS, PLAN, SUMS
from tests.pipeline.bundles import FILES, bundle_of, member, sums

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "unpack_bundle.py"
OLDEST_OF_A_JETPACK = (3, 8)


def unpacked(bundle: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(bundle), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_bundle_is_unpacked_without_its_outer_folder(tmp_path: Path) -> None:
    done = unpacked(bundle_of(tmp_path / "b.tar", member("top", kind=tarfile.DIRTYPE)), tmp_path / "b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert contents(tmp_path / "b") == FILES | {SUMS: sums(FILES)}


def test_modes_owners_and_times_of_the_archive_count_for_nothing(tmp_path: Path) -> None:
    run = member("top/run.sh", b"#!", mode=0o6777, uid=0, gid=0, mtime=1)
    bundle = bundle_of(tmp_path / "b.tar", run, listed=FILES | {"run.sh": b"#!"})
    assert unpacked(bundle, tmp_path / "b").returncode == 0
    status = (tmp_path / "b/run.sh").stat()
    assert stat.S_IMODE(status.st_mode) & 0o7133 == 0, "no set-user-id bits, none to execute, none for others to write"
    assert (status.st_uid, status.st_mtime > 1) == (os.getuid(), True)


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("top/device", tarfile.BLKTYPE, ""),
        ("top/device", tarfile.CHRTYPE, ""),
        ("top/pipe", tarfile.FIFOTYPE, ""),
        ("top/plan", tarfile.SYMTYPE, "plan.toml"),
        ("top/out", tarfile.SYMTYPE, "/etc"),
        ("top/hard", tarfile.LNKTYPE, "top/plan.toml"),
        ("top/what", b"Q", ""),
        ("/etc/cron.d/x", tarfile.REGTYPE, ""),
        ("top/../../x", tarfile.REGTYPE, ""),
        ("../x", tarfile.REGTYPE, ""),
        ("top/a//b", tarfile.REGTYPE, ""),
        ("elsewhere/x", tarfile.REGTYPE, ""),
        ("top", tarfile.REGTYPE, ""),
        ("top/\x1b[2J", tarfile.REGTYPE, ""),
        ("top/.trtforge/build/x/engine", tarfile.REGTYPE, ""),
        ("top/trtforge-report/report.json", tarfile.REGTYPE, ""),
        ("top/__pycache__/metric.cpython-310.pyc", tarfile.REGTYPE, ""),
        ("top/extra.py", tarfile.REGTYPE, ""),
    ],
)
def test_what_a_bundle_never_has_is_refused_before_anything_is_written(
    name: str, kind: bytes, target: str, tmp_path: Path
) -> None:
    listed = FILES | ({} if name.endswith("extra.py") else {name.removeprefix("top/"): b""})
    bundle = bundle_of(tmp_path / "b.tar", member(name, kind=kind, linkname=target), listed=listed)
    done = unpacked(bundle, tmp_path / "b")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "cannot be unpacked: " in done.stderr
    assert "copy it again, or pack it again with `trtforge pack`" in done.stderr
    assert "\x1b" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar"]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({}, "SHA256SUMS does not name its file 'plan.toml'"),
        (FILES | {"more.npz": b""}, "its file 'more.npz' is missing"),
        (FILES | {"manifest.json": b"[]"}, "it is damaged: 'manifest.json' is not what was packed (SHA-256 differs)"),
        (FILES | {"a\nb": b""}, "SHA256SUMS has the line 'b'"),
    ],
)
def test_sums_are_held_before_anything_is_written(listed: dict[str, bytes], message: str, tmp_path: Path) -> None:
    done = unpacked(bundle_of(tmp_path / "b.tar", listed=listed), tmp_path / "b")
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "b").exists()


def test_a_file_that_stands_there_twice(tmp_path: Path) -> None:
    for name, content in (("plan.toml", FILES["plan.toml"]), (SUMS, sums(FILES))):
        done = unpacked(bundle_of(tmp_path / "b.tar", member(f"top/{name}", content)), tmp_path / "b")
        assert (done.returncode, f"it has '{name}' twice" in done.stderr) == (2, True), done.stderr


def test_no_archive(tmp_path: Path) -> None:
    whole = bundle_of(tmp_path / "b.tar").read_bytes()
    holes = bytearray(whole)
    holes[124:136] = b"\xff" * 12  # The size of the first member, below zero.
    holes[148:156] = b"%06o\0 " % (sum(holes[:148]) + 8 * 32 + sum(holes[156:512]))
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:512], bytes(holes)):
        (tmp_path / "b.tar").write_bytes(content)
        done = unpacked(tmp_path / "b.tar", tmp_path / "b")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "cannot be unpacked: " in unpacked(tmp_path / "none.tar", tmp_path / "b").stderr
    assert not (tmp_path / "b").exists()


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "b/models").mkdir(parents=True)
    (tmp_path / "b/models/mine.onnx").write_bytes(b"mine")
    done = unpacked(bundle_of(tmp_path / "b.tar"), tmp_path / "b")
    assert (done.returncode, "b: is there already and is no unpacked bundle; move it away" in done.stderr) == (2, True)
    assert contents(tmp_path / "b") == {"models/mine.onnx": b"mine"}
    (tmp_path / "file").write_bytes(b"mine")
    done = unpacked(tmp_path / "b.tar", tmp_path / "file")
    assert (done.returncode, "file: cannot be written: " in done.stderr) == (2, True)


def test_unpacking_again_keeps_what_runs_wrote_and_follows_no_link(tmp_path: Path) -> None:
    bundle, folder, outside = bundle_of(tmp_path / "b.tar"), tmp_path / "b", tmp_path / "outside"
    assert unpacked(bundle, folder).returncode == 0
    (folder / ".trtforge").mkdir()
    (folder / ".trtforge/result").write_bytes(b"made here")
    outside.write_bytes(b"mine")
    (folder / PLAN).unlink()
    (folder / PLAN).symlink_to(outside)
    assert unpacked(bundle, folder).returncode == 0
    assert contents(folder) == FILES | {SUMS: sums(FILES), ".trtforge/result": b"made here"}
    assert outside.read_bytes() == b"mine"
    (folder / "models").rename(tmp_path / "moved")
    (folder / "models").symlink_to(tmp_path / "moved")
    done = unpacked(bundle, folder)
    assert (done.returncode, "leads through a link to another place" in done.stderr) == (2, True), done.stderr


def test_it_knows_the_names_that_the_product_writes_and_runs_on_the_oldest_python() -> None:
    names = runpy.run_path(str(SCRIPT))
    assert (names["WRITTEN_BY_RUNS"], names["CACHE"], names["SUMS"]) == (OURS, CACHE, SUMS)
    assert names["NEEDED"] == (PLAN, MANIFEST)
    ast.parse(SCRIPT.read_bytes(), feature_version=OLDEST_OF_A_JETPACK)
