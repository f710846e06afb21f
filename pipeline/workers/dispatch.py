"""What a worker is to do goes into the depot, and what it made comes out: every file by its SHA-256."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.file_digest import digest_now
from pipeline.errors import StageError
from pipeline.output import put, work_folder
from pipeline.remote.device_files import files_below
from pipeline.remote.fetched import TOPS, files_from_answer, settle, taken_from_before
from pipeline.remote.outcome import error_from_status
from pipeline.workers.depot import BUNDLES, TASKS, Depot
from pipeline.workers.device import program_digest
from pipeline.workers.task import Request

STATUSES, DAMAGED = range(7), 2
BASELINES = "baselines"


@dataclass(frozen=True)
class Shipment:
    """What is done on a worker."""

    task: str
    """Names its files in the depot: the same for the same line, so that the next night's take their place."""
    words: tuple[str, ...]
    """The verb of `trtforge`, and its arguments beside the plan and the store."""
    writes: str
    """The folder that it writes beside the bundle's plan."""
    baseline: tuple[str, Path | None]
    """The name of the last good engine, and the folder of its generation; None: there is none."""


def ship(shipment: Shipment, bundle: Path, depot: Depot, retries: int) -> Request:
    """Put what a worker needs into the depot; the request for it.

    Raises:
        ConfigError, Unavailable: the depot cannot take it.
    """
    digest, bundle_bytes = digest_now(bundle), bundle.stat().st_size
    _put_once(depot, bundle, f"{BUNDLES}/{digest}.tar", bundle_bytes)
    name, folder = shipment.baseline
    files = {}
    for path in () if folder is None else files_below(folder.resolve()):
        assert folder is not None
        num_bytes, of_file = path.stat().st_size, digest_now(path)
        _put_once(depot, path, f"{BASELINES}/{of_file}", num_bytes)
        files[path.relative_to(folder.resolve()).as_posix()] = [num_bytes, of_file]
    depot.remove(f"{TASKS}/{shipment.task}")
    return {
        "ask": "work",
        "source": program_digest(),
        "depot": depot.url,
        "task": shipment.task,
        "bundle": [bundle_bytes, digest],
        "baseline": {"name": name, "files": files},
        "words": list(shipment.words),
        "writes": shipment.writes,
        "retries": retries,
    }


def _put_once(depot: Depot, path: Path, name: str, num_bytes: int) -> None:
    if not depot.has(name, num_bytes):
        depot.put(path, name)


def bring(text: str, request: Request, depot: Depot, final: Path) -> int:
    """Bring what a worker made into ``final``, beside what else is there; the exit status of the command there.

    Args:
        text: the worker's answer.
        request: what it was asked.
        depot: where its files are.
        final: gets ``log.txt``, ``engines/``, and ``gate/`` or ``report/``; what is there of these is replaced.

    Raises:
        DataError: a file is not what the worker says; nothing is taken.
        Unavailable, StageError: it did not come to the command's end, or the depot is away.
    """
    task, name = f"{TASKS}/{request['task']}", request["baseline"]["name"]
    answer = _answer(text, name)
    status = answer["status"]
    if answer["sentence"]:
        if status == DAMAGED:  # Perhaps in the depot: what is sent again is put there again.
            depot.remove(f"{BUNDLES}/{request['bundle'][1]}.tar")
            for _, digest in request["baseline"]["files"].values():
                depot.remove(f"{BASELINES}/{digest}")
        raise error_from_status(status, str(answer["sentence"]))
    where = f"the worker of {name}"
    files = files_from_answer(answer, where)
    with work_folder(final / TOPS[0]) as work:
        new = work / "new"
        new.mkdir()
        for file in taken_from_before(files, final, new):
            depot.get(f"{task}/{file.digest}", (file.num_bytes, file.digest), new / file.name)
        settle(new, final, where)
        for index, top in enumerate(sorted(new.iterdir())):
            (work / str(index)).mkdir()
            put(top, final / top.name, work / str(index))
    depot.remove(task)
    return int(status)


def _answer(text: str, name: str) -> Mapping[str, Any]:
    """Held to what a worker says.

    Raises:
        StageError: it is no answer.
    """
    try:
        answer = json.loads(text)
        if not isinstance(answer, dict) or answer["status"] not in STATUSES or not isinstance(answer["sentence"], str):
            raise ValueError("without a status and a sentence")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StageError(f"{name}: its worker's answer is none ({error}); see the worker's log") from error
    return answer
