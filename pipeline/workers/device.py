"""A request on a worker's machine, in a process of its own: who it is, or a bundle fetched, gated, and sent back."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import EXIT_STATUS, FULL_DISK, DataError, StageError, Unavailable, exit_status
from pipeline.gate.generations import FOLDER, generations_folder
from pipeline.machine import child_process
from pipeline.machine.identity import installed_versions, this_machine
from pipeline.remote.archive import SCRIPTS, shared_folder
from pipeline.remote.device_files import (
    DEVICE_LOCK,
    GATE_FOLDER,
    REPORT_FOLDER,
    file_digest,
    files_below,
    files_made,
    is_taken,
    tensorrt_version,
)
from pipeline.source_files import AT_START, ROOT
from pipeline.workers.depot import TASKS, Depot
from pipeline.workers.task import Request

RunCommand = Callable[[Sequence[str]], int]
"""Runs `trtforge` with these arguments in this process, and returns its exit status."""
HOME = "~/.trtforge/worker"
"""Of this machine's worker: the store, bundles, and the last good engines that were sent."""
LOG = "log.txt"
KEEP_BUNDLES = 5
UNPACK, WORK = "unpack_bundle.py", "work-"


def main(run_command: RunCommand) -> None:
    """Answer the request on stdin, on stdout; die with the worker that asks."""
    request = json.load(sys.stdin)
    child_process.die_with_parent(request["parent"])
    sys.stdout.write(json.dumps(answer_to(request, run_command)))


def answer_to(request: Request, run_command: RunCommand) -> dict[str, Any]:
    """Do what is asked; whatever goes wrong is an exit status and a sentence."""
    try:
        if request["ask"] == "census":
            return {"status": 0, **asdict(this_worker())}
        return _worked(request, run_command)
    except tuple(EXIT_STATUS) as error:
        return {"status": exit_status(error), "sentence": str(error)}
    except OSError as error:
        what = "the disk is full; free some space there" if error.errno in FULL_DISK else f"{error.strerror}; see why"
        return {"status": 3, "sentence": f"{error.filename or HOME}: {what}, and run again"}


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself."""

    trtforge: str
    """Version."""
    source: str
    """SHA-256 (hex) of the program's source files."""
    machine: str
    """SHA-256 (hex) of what latency depends on there, see ``Machine.digest``."""
    describes: str
    """The machine, for people."""
    tensorrt: str
    """Its version; empty where there is none."""
    power_mode: str
    """Of a Jetson; empty elsewhere."""
    free_mib: int
    """On the disk of its store."""
    versions: dict[str, str]
    """Of distributions that a result may depend on."""


def this_worker() -> WorkerInfo:
    """The machine that this process runs on."""
    machine, versions = this_machine(), installed_versions()
    return WorkerInfo(
        trtforge=__version__,
        source=program_digest(),
        machine=machine.digest(),
        describes=machine.describe(),
        tensorrt=versions.get("tensorrt", "") or tensorrt_version(Path("/")),
        power_mode=machine.power_mode,
        free_mib=shutil.disk_usage(_home()).free >> 20,
        versions=versions,
    )


def program_digest() -> str:
    """SHA-256 (hex) of all source files of this program: their names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(AT_START):
        digest.update(f"{name} {file_digest(ROOT / name)}\n".encode())
    return digest.hexdigest()


def _home() -> Path:
    home = Path(HOME).expanduser()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home


def _worked(request: Request, run_command: RunCommand) -> dict[str, Any]:
    """Fetch the bundle and the last good engine, run the command, and put what it wrote into the depot."""
    depot, task = Depot(request["depot"]), f"{TASKS}/{request['task']}"
    if request["source"] != program_digest():
        raise Unavailable(
            f"trtforge {__version__} there is another version than on the hub; install the same one there"
        )
    depot.check()
    if (begun := depot.count(task, "begun-")) > (retries := request["retries"]):
        attempts = f"at attempt {begun} of {retries + 1}"
        raise StageError(
            f"its worker died while it was at work on this, {attempts}; see the worker's log, and the system's"
        )
    with (_home().parent / DEVICE_LOCK).open("a") as lock:
        if is_taken(lock):
            fcntl.flock(lock, fcntl.LOCK_EX)  # Of another worker on this machine, or of a run by ssh.
        for left in _home().glob(f"{WORK}*"):  # By one that was killed.
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=_home(), prefix=WORK) as work:
            (Path(work) / "begun").write_text(request["baseline"]["name"], encoding="utf-8")
            depot.put(Path(work) / "begun", f"{task}/begun-{begun}")
            bundle = _bundle(request, depot, Path(work))
            _last_good(request, depot, Path(work))
            attempt = f"attempt {begun + 1} of {retries + 1}: a worker died while it was at work on this\n"
            (bundle.parent / LOG).write_text(attempt if begun else "", encoding="utf-8")
            status = _ran(request, bundle, run_command)
            files = dict(files_made(bundle, request["writes"], bundle.parent / LOG, _home()))
            sent = {name: [path.stat().st_size, file_digest(path)] for name, path in files.items()}
            for name, path in files.items():
                depot.put(path, f"{task}/{sent[name][1]}")
    return {"status": status, "sentence": "", "files": sent}


def _bundle(request: Request, depot: Depot, work: Path) -> Path:
    """The unpacked bundle, whose files were held to its sums; one that is here is fetched no more."""
    num_bytes, digest = request["bundle"]
    folder: Path = _home() / "bundles" / digest
    tar = folder / "bundle.tar"
    if not (tar.is_file() and tar.stat().st_size == num_bytes and file_digest(tar) == digest):
        depot.get(f"bundles/{digest}.tar", (num_bytes, digest), work / "bundle.tar")
        folder.mkdir(parents=True, exist_ok=True)
        (work / "bundle.tar").replace(tar)
    os.utime(folder)
    for old in sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEEP_BUNDLES]:
        shutil.rmtree(old, ignore_errors=True)
    shared = ROOT if (ROOT / SCRIPTS / UNPACK).is_file() else shared_folder()
    command = [sys.executable, "-I", str(shared / SCRIPTS / UNPACK), str(tar), str(folder / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        kind = Unavailable if done.returncode == 3 else DataError
        raise kind((done.stderr.strip().splitlines() or [f"{tar}: cannot be unpacked; run again"])[-1])
    return folder / "bundle"


def _last_good(request: Request, depot: Depot, work: Path) -> None:
    """Make the hub's last good engine this store's, where the name has another one, or none."""
    name, store = request["baseline"]["name"], _home() / "store"
    expected: Mapping[str, list[Any]] = request["baseline"]["files"]
    folder = store / FOLDER / name
    here = {path.relative_to(folder).as_posix(): file_digest(path) for path in files_below(folder)}
    if here == {file: digest for file, (_, digest) in expected.items()}:
        return
    new = work / "baseline"
    for file, (num_bytes, digest) in expected.items():
        depot.get(f"baselines/{digest}", (num_bytes, digest), new / file)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(generations_folder(name, store), ignore_errors=True)
    if expected:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.rename(folder)


def _ran(request: Request, bundle: Path, run_command: RunCommand) -> int:
    """The command's exit status; what it printed is in the log."""
    for name in (GATE_FOLDER, REPORT_FOLDER):
        shutil.rmtree(bundle / name, ignore_errors=True)
    log = bundle.parent / LOG
    words = [request["words"][0], str(bundle / "plan.toml"), *request["words"][1:], "--store", str(_home() / "store")]
    try:
        return child_process.call(log, request["words"][0], run_command, words)
    except tuple(EXIT_STATUS) as error:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"trtforge: {error}\n")
        return exit_status(error)
