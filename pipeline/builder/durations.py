"""How long a build will take, going by earlier ones on this machine: an estimate for whoever waits."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

NUM_KEPT = 200


@dataclass(frozen=True)
class BuildTime:
    """One build that went through."""

    kind: str
    """What takes equally long for equal models: backend, precision, optimization level, GPU."""
    model_digest: str
    model_mib: float
    seconds: float


def estimate_seconds(file: Path, kind: str, model_digest: str, model_mib: float) -> float:
    """The last build of this very model, or one of its kind in proportion to the models' sizes; 0 if there is none."""
    alike = [build for build in _kept(file) if build.kind == kind]
    same = [build.seconds for build in alike if build.model_digest == model_digest]
    if same:
        return same[-1]
    rates = [build.seconds / build.model_mib for build in alike if build.model_mib > 0]
    return statistics.median(rates) * model_mib if rates else 0.0


def keep(file: Path, build: BuildTime) -> None:
    """Add a build to those that are kept; nothing happens where the file cannot be written."""
    lines = [json.dumps(asdict(one)) for one in (*_kept(file), build)][-NUM_KEPT:]
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.replace(file)
    except OSError:
        return  # It is an estimate of somebody else's waiting; a full disk is said by what has to be written.


def about(seconds: float) -> str:
    """``about 40 s``, ``about 3 min``; empty for 0."""
    if not seconds:
        return ""
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"


def _kept(file: Path) -> Iterator[BuildTime]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            build = BuildTime(**json.loads(line))
            yield BuildTime(str(build.kind), str(build.model_digest), float(build.model_mib), float(build.seconds))
        except (ValueError, TypeError):
            continue  # Of another version, or cut off.
