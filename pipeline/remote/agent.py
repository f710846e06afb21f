"""The far side of `--on`: sent by ssh and run there by whatever Python from 3.8 on there is, with its library alone.

It speaks lines of JSON on stdin and stdout, some followed by as many bytes as they say. All that it writes lies in one
folder, ``~/.trtforge``::

    program/DIGEST/    the program, as the desk has it; the same digest is the same folder
    environment/       what scripts/build_on_jetson installs
    cache/             what makes later runs quicker: pip's, CUDA's, digests
    store/             results and last good engines
    work/DIGEST/       a bundle (bundle.tar, and unpacked: bundle/), its job, what that printed (log, out), its end

A job is a process of its own session, so that a connection that breaks does not end it; whoever comes with the same
bundle and command finds it at work, or done. One job runs at a time.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import IO, Any, Iterator, NoReturn  # noqa: UP035  # Of Python 3.8.

from pipeline.remote.device_files import (
    BLOCK_BYTES,
    BUNDLE,
    DEVICE_LOCK,
    END,
    JOB,
    LOG,
    OUT,
    Alone,
    file_digest,
    files_made,
    is_taken,
    is_whole,
    parts_of,
    places,
    read_json,
    remove_unused,
    sha256,
    tail,
    tensorrt_version,
    write_json,
)

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SPARE_BYTES = 64 << 20
"""What has to stay free on the disk beside a bundle and its unpacked files."""
WAIT_SECONDS, STOP_SECONDS = 0.1, 15.0
KEEP_WORK, KEEP_SECONDS = 5, 30 * 86400
"""Bundles that stay, the last used ones; how long a program stays that is not used."""
PART, LOCK = "part", "lock"


class Refusal(Exception):
    """What cannot be done here, in a sentence, and the exit status for it."""

    def __init__(self, sentence: str, status: int = 3) -> None:
        """``status``: of the project's table."""
        super().__init__(sentence)
        self.status = status


class Agent:
    """Answers the desk's requests, one after another."""

    def __init__(self, source: str, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        """``source``: of this file, for the process that runs a job."""
        self.source, self.incoming, self.outgoing = source, incoming, outgoing
        self.home = Path(os.path.expanduser("~/.trtforge"))  # noqa: PTH111
        self.ahead: dict[str, Any] | None = None
        self.reader: threading.Thread | None = None

    def serve(self) -> None:
        """Answer until the desk says that it is done, or is gone."""
        answers = {
            "hello": self.hello,
            "offer": self.offer,
            "start": self.start,
            "follow": self.follow,
            "results": self.results,
            "get": self.get,
            "done": self.done,
        }
        while True:
            request = self.request()
            if request["ask"] == "stop":  # What it was to stop has ended meanwhile.
                continue
            try:
                self.reply(answers[request["ask"]](request))
            except Refusal as refusal:
                self.reply({"error": str(refusal), "status": refusal.status})
                return
            except OSError as error:
                full = error.errno in FULL_DISK
                do = (
                    "the disk is full; free some space there" if full else f"cannot be used ({error.strerror}); see why"
                )
                self.reply({"error": f"{error.filename or self.home}: {do}; then run again", "status": 3})
                return
            if request["ask"] == "done":
                return

    def request(self) -> dict[str, Any]:
        """The next one; a desk that is gone ends this process, and no job."""
        if self.reader is not None:
            self.reader.join()
            self.reader = None
        else:
            self._read()
        assert self.ahead is not None
        return self.ahead

    def _read(self) -> None:
        line = self.incoming.readline()
        if not line.endswith(b"\n"):
            os._exit(0)
        self.ahead = json.loads(line)

    def reply(self, answer: dict[str, Any]) -> None:
        """One line."""
        self.outgoing.write(json.dumps(answer).encode() + b"\n")
        self.outgoing.flush()

    def send(self, data: bytes) -> None:
        """Bytes, after a line that says how many."""
        self.outgoing.write(b'{"data": %d}\n' % len(data) + data)
        self.outgoing.flush()

    def hello(self, _request: dict[str, Any]) -> dict[str, Any]:
        """What this machine is."""
        try:
            version = importlib.metadata.version("tensorrt")
        except importlib.metadata.PackageNotFoundError:
            version = tensorrt_version(Path("/"))
        return {"python": list(sys.version_info[:2]), "home": str(self.home), "tensorrt": version}

    def offer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take an archive in parts: say which are lacking, and write them; those of one like it are here already.

        ``request``: ``kind`` (``program`` or ``work``), ``digest`` of the whole, ``parts`` as [bytes, SHA-256], and
        ``room``, the bytes that unpacking takes.
        """
        folder = self.folder(request["kind"], request["digest"])
        whole = folder / BUNDLE
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home.chmod(0o700)
        with Alone(folder / "copying"):
            if is_whole(whole, request):
                self.reply({"lacks": []})
                return self.settled(folder, request)
            part = folder / PART
            try:
                self.take(part, folder, request)
            except OSError as error:
                if error.errno in FULL_DISK:
                    part.unlink()
                    remove_unused(folder)
                raise
            part.replace(whole)
            return self.settled(folder, request)

    def take(self, part: Path, folder: Path, request: dict[str, Any]) -> None:
        """Write the archive, of what is here and what the desk sends."""
        lacks = self.fill(part, request["parts"], list(folder.parent.glob("*/" + BUNDLE)))
        need = sum(request["parts"][number][0] for number in lacks) + request["room"] + SPARE_BYTES
        if (free := shutil.disk_usage(str(folder)).free) < need:
            part.unlink()
            remove_unused(folder)
            raise Refusal(
                f"{folder}: the disk is full ({free >> 20} MiB free, {need >> 20} MiB are needed); free some there, "
                "then run again"
            )
        self.reply({"lacks": lacks})
        self.receive(part, request["parts"], lacks)
        if file_digest(part) != request["digest"]:
            part.unlink()
            raise Refusal(f"{part}: was changed on the way (SHA-256 differs); run again", 2)

    def settled(self, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
        """The archive is here: a program is unpacked, what its job needs is said."""
        os.utime(str(folder))
        (folder / PART).unlink() if (folder / PART).exists() else None
        if request["kind"] == "program" and not (folder / "complete").exists():
            with tarfile.open(str(folder / BUNDLE)) as archive:
                for member in archive:
                    target = folder / "root" / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    stream = archive.extractfile(member)
                    assert stream is not None
                    target.write_bytes(stream.read())
                    target.chmod(member.mode)
            (folder / "complete").write_bytes(b"")
        return {"folder": str(folder)}

    def fill(self, part: Path, parts: list[list[Any]], others: list[Path]) -> list[int]:
        """Put what is here of these parts into the file; the numbers of those that are not here."""
        known: dict[str, tuple[Path, int]] = {}
        for other in others:
            known.update({digest: (other, at) for at, _, digest in places(parts_of(other))})
        lacks = []
        with part.open("r+b" if part.exists() else "w+b") as out:
            for number, (at, num_bytes, digest) in enumerate(places(parts)):
                out.seek(at)
                if sha256(out.read(num_bytes)) == digest:
                    continue
                data = b""
                if digest in known:
                    with known[digest][0].open("rb") as source:
                        source.seek(known[digest][1])
                        data = source.read(num_bytes)
                if sha256(data) == digest:
                    out.seek(at)
                    out.write(data)
                else:
                    lacks.append(number)
            out.truncate(sum(num_bytes for num_bytes, _ in parts))
        (part.parent / "parts.json").write_text(json.dumps(parts))
        return lacks

    def receive(self, part: Path, parts: list[list[Any]], lacks: list[int]) -> None:
        """Write the parts that the desk sends, in that order, each to its place."""
        begins = [at for at, _, _ in places(parts)]
        with part.open("r+b") as out:
            for number in lacks:
                num_bytes, digest = parts[number]
                data = self.incoming.read(num_bytes)
                if len(data) < num_bytes:
                    os._exit(0)  # The connection broke; what came stays.
                if sha256(data) != digest:
                    raise Refusal(f"{part.parent}: a part was changed on the way (SHA-256 differs); run again", 2)
                out.seek(begins[number])
                out.write(data)
                out.flush()

    def folder(self, kind: str, digest: str) -> Path:
        """Where a thing of that digest lies."""
        return self.home / kind / digest[:16]

    def start(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start a job, or find it at work or done.

        ``request``: ``digest`` of the bundle, ``program``, ``arguments`` of scripts/build_on_jetson, ``environment``,
        ``writes`` (the folder in the bundle that it writes).
        """
        folder = self.folder("work", request["digest"])
        job = {key: request[key] for key in ("program", "arguments", "environment", "writes")}
        with (folder / LOCK).open("a") as lock:
            is_same = read_json(folder / JOB).get("job") == job
            if is_taken(lock):
                if not is_same:
                    raise Refusal(f"{folder}: another command is at work on this bundle there; wait for its end")
                return {"state": "at work"}
            end = read_json(folder / END)
            if is_same and end and not end["fetched"] and not end["stopped"]:
                return {"state": "done"}
            self.begin(folder, job, lock)
        return {"state": "started"}

    def begin(self, folder: Path, job: dict[str, Any], lock: IO[str]) -> None:
        """Start the process of a job, which has the lock from then on."""
        (folder / END).unlink() if (folder / END).exists() else None
        for name in (LOG, OUT):
            (folder / name).write_bytes(b"")
        (folder / "agent.py").write_text(self.source, encoding="utf-8")
        write_json(folder / JOB, {"job": job, "pid": 0})
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", str(folder / "agent.py"), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(lock.fileno(),),
                start_new_session=True,
            )
        write_json(folder / JOB, {"job": job, "pid": process.pid})

    def follow(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send what the job prints, until it ends; a request meanwhile means that it is to be stopped."""
        folder, sent = self.folder("work", request["digest"]), 0
        self.ahead = None
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        with (folder / LOCK).open("a") as lock, (folder / LOG).open("rb") as log:
            at_work = True
            while at_work:
                at_work = is_taken(lock)
                while data := log.read(BLOCK_BYTES):
                    self.send(data)
                    sent += len(data)
                if at_work and self.ahead is not None:
                    self.stop(folder, lock)
                elif at_work:
                    time.sleep(WAIT_SECONDS)
        if self.ahead is not None:
            self.reader = None
        end = read_json(folder / END)
        if not end:
            raise Refusal(f"{folder}: the job died without an end (out of memory, or a restart); run again", 4)
        return {"status": end["status"], "stopped": end["stopped"], "out": tail(folder / OUT)}

    def stop(self, folder: Path, lock: IO[str]) -> None:
        """End the job and all that it started."""
        pid = read_json(folder / JOB).get("pid", 0)
        if type(pid) is not int or pid <= 1 or pid == os.getpgrp():  # Of none that this agent started.
            raise Refusal(f"{folder}: it is not known which process works there; end it by hand")
        for number in (signal.SIGTERM, signal.SIGKILL):
            began = time.monotonic()
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                return
            while time.monotonic() - began < STOP_SECONDS:
                if not is_taken(lock):
                    break
                time.sleep(WAIT_SECONDS)
            else:
                continue
            break
        if not read_json(folder / END):
            write_json(folder / END, {"status": 143, "stopped": True, "fetched": False})

    def results(self, request: dict[str, Any]) -> dict[str, Any]:
        """The files of a job that ended: name -> bytes and SHA-256."""
        files = {}
        for name, path in self.files_of(request):
            files[name] = [path.stat().st_size, file_digest(path)]
        return {"files": files}

    def files_of(self, request: dict[str, Any]) -> Iterator[tuple[str, Path]]:
        """What is fetched."""
        folder = self.folder("work", request["digest"])
        return files_made(folder / "bundle", request["writes"], folder / LOG, self.home)

    def get(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send files, in the order of their names in the request."""
        files = dict(self.files_of(request))
        for name in request["names"]:
            with files[name].open("rb") as stream:
                while data := stream.read(BLOCK_BYTES):
                    self.send(data)
        return {"sent": len(request["names"])}

    def done(self, request: dict[str, Any]) -> dict[str, Any]:
        """The desk has all; what is old goes, and where that is asked for everything."""
        folder = self.folder("work", request["digest"])
        write_json(folder / END, {**read_json(folder / END), "fetched": True})
        with (self.home / DEVICE_LOCK).open("a") as lock:
            if is_taken(lock):
                return {"cleaned": False}
            if request["clean"]:
                shutil.rmtree(str(self.home))
                return {"cleaned": True}
            newest = sorted((self.home / "work").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in newest[KEEP_WORK:]:
                shutil.rmtree(str(old), ignore_errors=True)
            for other in (self.home / "program").iterdir():
                if time.time() - other.stat().st_mtime > KEEP_SECONDS:
                    shutil.rmtree(str(other), ignore_errors=True)
        return {"cleaned": False}


def main(source: str) -> NoReturn:
    """The agent of one connection."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    Agent(source, sys.stdin.buffer, sys.stdout.buffer).serve()
    sys.exit(0)
