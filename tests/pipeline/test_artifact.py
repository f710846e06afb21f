"""The digest of a folder: every file by its name from there, in one order."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pipeline.artifact import digest_of_path, files_below


def test_files_come_in_the_order_of_their_paths_and_links_to_folders_do_not_count(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b/a/deep.txt", "b.txt", "a-b/x", "a/y", "a.b/c", ".hidden/f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "to_file").symlink_to("b.txt")
    (tmp_path / "to_folder").symlink_to("b")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    expected = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert list(files_below(tmp_path).values()) == expected
    assert list(files_below(tmp_path)) == [path.relative_to(tmp_path).as_posix() for path in expected]
    sha = hashlib.sha256()
    for path in expected:
        name = path.relative_to(tmp_path).as_posix()
        sha.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    assert digest_of_path(tmp_path) == sha.hexdigest()
    assert files_below(tmp_path / "nothing") == {}
