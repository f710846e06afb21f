"""What is sent: parts that are the same for the same files, and this very program with its scripts."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import Unavailable
from pipeline.remote.agent import Agent
from pipeline.remote.archive import (
    PART_BYTES,
    SentArchive,
    archive_from_tar,
    shared_folder,
    source_files,
    write_program,
)
from pipeline.remote.device_files import places, tensorrt_version
from pipeline.remote.session import agent_source
from tests.pipeline.bundles import bundle_of, member

ROOT = Path(__file__).resolve().parents[3]


def test_parts_are_all_of_it(tmp_path: Path) -> None:
    large = member("top/large", b"l" * (PART_BYTES + 5))
    files = {"plan.toml": b"[model]\n", "manifest.json": b"{}", "models/fp32/model.onnx": b"\x08\x08" * 4000}
    path = bundle_of(tmp_path / "b.tar", large, listed=files | {"large": large[1]})
    sent = archive_from_tar(path)
    data = [sent.data(part) for part in sent.parts]
    assert b"".join(data) == path.read_bytes()
    assert [hashlib.sha256(part).hexdigest() for part in data] == [part.digest for part in sent.parts]
    assert sent.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sent.num_bytes == path.stat().st_size
    assert max(part.num_bytes for part in sent.parts) == PART_BYTES
    assert list(places([[part.num_bytes, part.digest] for part in sent.parts])) == [
        (part.begin, part.num_bytes, part.digest) for part in sent.parts
    ]
    small = archive_from_tar(bundle_of(tmp_path / "c.tar"))
    model = hashlib.sha256(b"\x08\x08" * 4000).hexdigest()
    assert model in {part.digest for part in sent.parts} & {part.digest for part in small.parts}


def test_the_program_is_all_that_is_needed_there(program: SentArchive, tmp_path: Path) -> None:
    with tarfile.open(program.path) as whole:
        members = {each.name: each for each in whole}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = {name for name in tracked if name.startswith(("calibration/", "engines/", "pipeline/", "scripts/"))}
    assert wanted - set(members) == set()
    assert {"setup.cfg", "setup.py", "pyproject.toml", "README.md", "trtforge.py"} <= set(members)
    assert members["scripts/build_on_jetson"].mode == 0o755
    assert members["setup.cfg"].mode == 0o644
    assert not [name for name in members if name.endswith((".pyc", ".so")) or "__pycache__" in name]
    write_program(tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == program.path.read_bytes()


def test_what_was_compiled_or_is_hidden_is_not_sent(tmp_path: Path) -> None:
    for name in ("a.py", "a.pyc", "b.so", ".hidden", "__pycache__/a.py", "room/c.c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [path.relative_to(tmp_path).as_posix() for path in source_files(tmp_path)] == ["a.py", "room/c.c"]


def test_an_installation_without_its_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda _name: [])
    with pytest.raises(
        Unavailable, match=r"^--on: this installation of trtforge has no scripts/build_on_jetson; run it"
    ):
        shared_folder()


def test_the_agent_is_one_text_that_runs_alone(tmp_path: Path) -> None:
    """Without this project on its path, in an interpreter that is isolated."""
    text = agent_source()
    (tmp_path / "agent.py").write_text(text)
    code = "import sys; g = {'__name__': 'agent'}; exec(open(sys.argv[1]).read(), g); g['main'](1)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "agent.py")],
        input=b"",
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


NVINFER = """Package: libnvinfer10
Status: {status}
Priority: optional
Version: {version}
"""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (NVINFER.format(status="install ok installed", version="10.3.0.30-1+cuda12.5"), "10.3.0.30"),
        (NVINFER.format(status="install ok installed", version="1:8.5.2-1+cuda11.4"), "8.5.2"),
        (NVINFER.format(status="deinstall ok config-files", version="8.5.2-1"), ""),
        ("Package: libnvinfer-dev\nStatus: install ok installed\nVersion: 9\n", ""),
        ("Package: bash\nStatus: install ok installed\nVersion: 5\n\n", ""),
        ("", ""),
    ],
)
def test_the_version_of_tensorrt_that_dpkg_knows(tmp_path: Path, text: str, version: str) -> None:
    file = tmp_path / "var/lib/dpkg/status"
    file.parent.mkdir(parents=True)
    file.write_text(f"Package: adduser\nStatus: install ok installed\nVersion: 3\n\n{text}")
    assert tensorrt_version(tmp_path) == version


def test_without_dpkg_no_version_is_known(tmp_path: Path) -> None:
    assert tensorrt_version(tmp_path) == ""


def test_the_agent_writes_below_its_own_folder_alone() -> None:
    assert Agent("", sys.stdin.buffer, sys.stdout.buffer).folder("work", "a" * 64).parts[-3:] == (
        ".trtforge",
        "work",
        "a" * 16,
    )
