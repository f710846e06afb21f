"""What runs in a worker itself: it starts one process for each request, tells it in JSON, and hands its answer back.

A worker may live for weeks, and be older than the program that is installed beside it: what it does must stay as little
as this, and what it starts is what is installed now. A daemon, as a worker is, may start no process by
`multiprocessing`; this one is none of its own, and is killed with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

Request: TypeAlias = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent.parent
START = (
    "import sys; sys.path[0] = sys.argv[1]; from pipeline.command.cli import status_of; "
    "from pipeline.workers.device import main; main(status_of)"
)
"""As a command that imports nothing from the current folder; what is here knows nothing of the command's room."""
LAST_CHARACTERS = 2000
_RUNNING: dict[subprocess.Popen[str], str] = {}
"""What this worker is at work on, and the request; several hubs may ask the same."""
_STOPPED: set[str] = set()
"""Requests that nobody waits for any more: one that comes here after its end was asked for is not begun. A hub marks
its requests, so that none of another night is among them."""
STOPPED = "was stopped before it began"


def run_request(request: str) -> str:
    """Do it in a process of its own; request and answer are JSON texts.

    Whatever went wrong is an answer with an exit status and a sentence: an error would be tried again.
    """
    if request in _STOPPED:
        return _failed(4, STOPPED)
    text = json.dumps(json.loads(request) | {"parent": os.getpid()})
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(ROOT)], stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace"
        )
    except OSError as error:
        return _failed(3, f"{sys.executable}: cannot be started ({error.strerror}); see what is wrong there")
    with process:
        _RUNNING[process] = request
        if request in _STOPPED:  # In the meantime.
            process.kill()
        try:
            answer, last_words = process.communicate(text)
        finally:
            del _RUNNING[process]
    if process.returncode:
        status = process.returncode
        what = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return _failed(4, f"the task's process {what}: {last_words.strip()[-LAST_CHARACTERS:]}")
    return answer


async def asked(request: str) -> str:
    """The same, beside what the worker is at work on."""
    return await asyncio.get_running_loop().run_in_executor(None, run_request, request)


async def stopped(requests: list[str]) -> None:
    """End what this worker is at work on of these: nobody waits for it any more. What they started dies with them."""
    _STOPPED.update(requests)
    for process, request in tuple(_RUNNING.items()):
        if request in requests:
            process.kill()


def _failed(status: int, sentence: str) -> str:
    return json.dumps({"status": status, "sentence": sentence})
