"""The process of a job on a device: it runs the script, and outlives the connection that began it. Python 3.8."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path

from pipeline.remote.device_files import (
    BUNDLE,
    DEVICE_LOCK,
    END,
    GATE_FOLDER,
    JOB,
    LOG,
    OUT,
    REPORT_FOLDER,
    is_taken,
    read_json,
    write_json,
)

INTERRUPTED, TERMINATED = 130, 143


def run_job(folder: Path) -> None:
    """What the process of a job does: wait for others, run the script, write how it ended."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    home, job = folder.parent.parent, read_json(folder / JOB)["job"]
    root = home / "program" / job["program"][:16] / "root"
    ours = {"PYTHONPATH": str(root), "VENV": str(home / "environment"), "SCRIPT_NAME": "trtforge"}
    ours.update(XDG_CACHE_HOME=str(home / "cache"), CUDA_CACHE_PATH=str(home / "cache" / "cuda"))
    status = 4
    with (home / DEVICE_LOCK).open("a") as device, (folder / LOG).open("ab") as log, (folder / OUT).open("ab") as out:
        if is_taken(device):
            log.write(b"trtforge: another job is at work on this device; this one waits for its end\n")
            log.flush()
            fcntl.flock(device, fcntl.LOCK_EX)
        for name in (REPORT_FOLDER, GATE_FOLDER):
            shutil.rmtree(str(folder / "bundle" / name), ignore_errors=True)
        command = ["bash", str(root / "scripts" / "build_on_jetson"), str(folder / BUNDLE), *job["arguments"]]
        try:
            environment = {**os.environ, **ours, **job["environment"]}
            status = subprocess.Popen(command, stdout=out, stderr=log, cwd=str(folder), env=environment).wait()
        except OSError as error:
            log.write(f"trtforge: bash: cannot be run ({error.strerror}); install it there\n".encode())
            status = 3
    stopped = status in (INTERRUPTED, TERMINATED) or status < 0
    write_json(folder / END, {"status": status if status >= 0 else 128 - status, "stopped": stopped, "fetched": False})
