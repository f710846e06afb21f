"""How long each node takes of an engine that several providers share, by ONNX Runtime's own profile.

The profile counts what the host waits for, and work on a GPU is only queued. So the session is opened in a process of
its own in which each launch of a kernel waits for its end: the variable that says so is read when CUDA starts.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engines.contract import Array, LayerFacts, LayerTimes
from engines.errors import EngineError, Unavailable
from engines.layers import layer_times_from
from engines.onnx_model import read_model
from engines.ort.profile import kernels_from_profile, providers_from_profile
from engines.ort.sharing import SharedRunner, Sharing, description_of, place
from engines.provider_share import ProviderShare

EACH_WAITS = {"CUDA_LAUNCH_BLOCKING": "1"}
NUM_UNTOLD = 3
"""Runs before a profile counts."""
FIRST_STEPS = (
    "import sys; sys.path = [entry for entry in sys.path if entry]; import pickle; read = sys.stdin.buffer; "
    "sys.path = pickle.load(read); from engines.ort.shared_times import main; main(pickle.load(read))"
)
"""`python -c` puts the current folder first on the path, which may be anybody's; it has imported nothing by then."""
_ERRORS = {kind.__name__: kind for kind in (EngineError, Unavailable)}
_NUMBER = re.compile(r"_(\d+)$")
_NUM_LAST_LINES = 4


def layer_times(sharing: Sharing, engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
    """The median of each kernel, and of each part that was compiled as a whole; its kind says who runs it.

    With what it costs to launch it and to wait for it, some microseconds.

    Raises:
        Unavailable: a provider does not load here.
        EngineError: it does not open or run, or the process died.
    """
    description = description_of(engine)
    with tempfile.TemporaryDirectory() as folder:
        trace = _trace(sharing, engine, feed, NUM_UNTOLD + num_runs, Path(folder))
    makers = {
        tensor: node.name
        for node in read_model(engine / description.model).graph.node
        for tensor in node.output
        if node.name
    }
    kernels, times_ms = kernels_from_profile(trace, makers, NUM_UNTOLD)
    layers = with_providers(kernels, providers_from_profile(trace), description.shares)
    return LayerTimes(layer_times_from(times_ms, layers))


def with_providers(
    kernels: Iterable[LayerFacts], providers: Mapping[str, str], shares: Sequence[ProviderShare]
) -> tuple[LayerFacts, ...]:
    """Kernels with their provider in their kind, and parts that were compiled with their nodes.

    Parts are numbered in the order in which they were handed over; where not all of them ran, none is told its nodes.

    Args:
        kernels: as the profile has them.
        providers: of each kernel's name, who ran it.
        shares: who runs which nodes; the first has the parts.
    """
    kernels = tuple(kernels)
    first = shares[0]
    parts = sorted((each.name for each in kernels if providers[each.name] == first.provider), key=_number_of)
    nodes_of: dict[str, tuple[str, ...]] = {}
    if first.segments and len(parts) == len(first.segments):
        ends = [sum(first.segments[: number + 1]) for number in range(len(parts))]
        nodes_of = {name: first.nodes[end - size : end] for name, end, size in zip(parts, ends, first.segments)}
    is_part = set(parts) if first.segments else set()
    return tuple(
        replace(each, kind=f"segment on {place(providers[each.name])}", precision="", nodes=nodes_of.get(each.name, ()))
        if each.name in is_part
        else replace(each, kind=f"{each.kind} on {place(providers[each.name])}")
        for each in kernels
    )


def main(job: tuple[tuple[str, tuple[str, ...], str, bool, bool], Path, Mapping[str, Array], int, Path]) -> None:
    """In the process of its own: run, and write the profile's text, or what is wrong, into the folder.

    Of the sharing come its facts, for its functions build, and nothing is built here.
    """
    facts, engine, feed, num_runs, folder = job
    try:
        with SharedRunner(Sharing(*facts, versions=dict), engine, 0, profile=str(folder)) as runner:
            for _ in range(num_runs):
                runner.infer(feed)
            runner.end_profile().rename(folder / "trace.json")
    except tuple(_ERRORS.values()) as error:
        kind = next(name for name, each in _ERRORS.items() if isinstance(error, each))
        (folder / "error.json").write_text(json.dumps([kind, str(error)]), encoding="utf-8")


def _trace(sharing: Sharing, engine: Path, feed: Mapping[str, Array], num_runs: int, folder: Path) -> str:
    facts = (sharing.name, sharing.providers, sharing.title, sharing.compiles, sharing.optimizes)
    job = pickle.dumps(sys.path) + pickle.dumps((facts, engine, dict(feed), num_runs, folder))
    command = [sys.executable, "-c", FIRST_STEPS]
    done = subprocess.run(command, input=job, capture_output=True, check=False, env={**os.environ, **EACH_WAITS})
    if (folder / "error.json").is_file():
        kind, words = json.loads((folder / "error.json").read_text(encoding="utf-8"))
        raise _ERRORS[kind](words)
    if not (folder / "trace.json").is_file():
        lines = done.stderr.decode(errors="replace").strip().splitlines()[-_NUM_LAST_LINES:]
        raise EngineError(
            f"{engine}: the process that timed its nodes ended with status {done.returncode} "
            f"({' '.join(' '.join(lines).split()) or 'without a word'}); benchmark without layers"
        )
    return (folder / "trace.json").read_text(encoding="utf-8")


def _number_of(name: str) -> int:
    match = _NUMBER.search(name)
    return int(match[1]) if match else 0
