"""What stands in the way of a build or of an honest number on this machine, each with the line that mends it."""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engines.availability import BackendState, survey
from engines.backends import tensorrt
from engines.elsewhere.worker import PYTHON_VARIABLE
from engines.ort.providers import DISTRIBUTIONS, ProviderLinks, provider_links, wheels
from engines.torch_graph import library
from pipeline.errors import Unavailable
from pipeline.machine.extras import Extra, extras
from pipeline.machine.identity import Machine, installed_versions, this_machine
from pipeline.machine.jetson import Clock, Jetson, Release, jetson_here
from pipeline.machine.memory import Memory, build_need_mib, memory_here
from pipeline.plan import Plan
from pipeline.sources import pytorch

Level = Literal["bad", "warning", "note"]
"""``bad``: the build or the run is going to fail; ``warning``: numbers or results may be wrong; ``note``: to know."""

SCHEMA_VERSION = 1
"""Of the JSON; rises with every change that could break a reader."""

OLDEST_TENSORRT = (8, 5)
OLDEST_PYTHON = (3, 10)
CUDA_13_NEEDS_PYCUDA = (2025, 1, 2)
DISK_MIB = 2048
"""Less free than this is worth a warning: engines, logs and the store."""

VENV = "/usr/bin/python3 -m venv --system-site-packages .venv"
PYCUDA = "PATH=/usr/local/cuda/bin:$PATH .venv/bin/pip install 'pycuda>=2025.1.2'"
BINDINGS = "sudo apt install python3-libnvinfer"
NO_NEWER_JETPACK = ("tegra210", "tegra186")
DLA_GAP = ((10, 8), (11, 4, 1))
"""TensorRT without DLA: from the first version on, up to before the second."""
ELEVEN, FIRST_ELEVEN = (11,), (11, 4, 1)
"""Of TensorRT 11 the first that NVIDIA supports on a Jetson: AGX Orin and Thor with JetPack 7.2.2 or later."""
FIRST_L4T_OF_ELEVEN = (39,)


@dataclass(frozen=True)
class Notice:
    """One thing that was found, and what to do about it."""

    level: Level
    subject: str
    sentence: str
    do: str = ""
    """A command, or what else helps; empty for what only wants to be known."""

    def line(self) -> str:
        """As it is printed."""
        return f"{self.level}: {self.subject}: {self.sentence}" + (f"; {self.do}" if self.do else "")


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs this, and what it finds."""

    python: str
    """Such as ``3.10``."""
    executable: str
    tensorrt: str
    """Where ``import tensorrt`` leads; empty if nowhere."""
    versions: dict[str, str]
    """Installed distributions that matter."""
    tensorrt_python: str = ""
    """Another interpreter that has TensorRT and is asked for it, and its version; empty where it is this one."""


@dataclass(frozen=True)
class Diagnosis:
    """All that `trtforge doctor` knows."""

    machine: Machine
    memory: Memory
    jetson: Jetson | None
    """None on any other machine."""
    interpreter: Interpreter
    backends: tuple[BackendState, ...]
    needed: tuple[str, ...]
    """The backends that have to work: the plan's, or on a Jetson tensorrt; empty elsewhere."""
    onnxruntime: tuple[str, ...]
    """The installed distributions that hold ONNX Runtime, with their versions: one of them, or they overwrite each
    other."""
    providers: tuple[ProviderLinks, ...]
    """What of ONNX Runtime computes on the GPU, and the libraries that it links."""
    build_need_mib: int
    """A rule of thumb for TensorRT's build of the plan's model; 0 where TensorRT is not needed."""
    findings: tuple[Notice, ...]
    extras: tuple[Extra, ...] = ()
    """Of this package; empty where it was never installed."""

    def why_not(self) -> list[str]:
        """Why what is needed cannot work here, a sentence each; empty if it can."""
        states = {state.name: state for state in self.backends}
        reasons = [_why_not(states[name], states["onnxruntime"].can_run, self.jetson) for name in self.needed]
        faults = [finding.line().removeprefix("bad: ") for finding in self.findings if finding.level == "bad"]
        return [*faults, *(reason for reason in reasons if reason)]

    def facts(self) -> list[str]:
        """What was found, a line each, for people."""
        memory = self.memory
        swap = f"{memory.swap_mib} MiB swap on disk, {memory.zram_mib} MiB in zram" if memory.total_mib else "unknown"
        lines = [
            f"memory: {memory.available_mib} of {memory.total_mib} MiB available, {swap}; "
            f"disk: {memory.disk_free_mib} MiB free"
        ]
        version = self.interpreter.versions.get(library.DISTRIBUTION, "")
        training = library.why_not() or f"torch {version}"
        lines.append(f"tune, prune: {training}")
        if self.onnxruntime:
            lines.append(f"onnxruntime: {' and '.join(self.onnxruntime)}{'' if self.providers else ', for the CPU'}")
        lines += [f"onnxruntime: {links.sentence()}" for links in self.providers]
        if self.interpreter.tensorrt_python:
            lines.append(f"tensorrt: is called in a process of {self.interpreter.tensorrt_python}")
        if self.build_need_mib:
            lines.append(f"build: takes about {self.build_need_mib} MiB with TensorRT (rule of thumb)")
        if (jetson := self.jetson) is not None:
            packages = ", ".join(f"{name} {version}" for name, version in jetson.packages.items())
            clocks = ", ".join(f"{clock.name} {clock.current_mhz:.0f} MHz" for clock in jetson.clocks)
            lines += [
                f"jetson: {jetson.board} ({jetson.soc}, compute capability {jetson.compute_capability or 'unknown'})",
                f"jetson: L4T {jetson.l4t or 'unknown'}, JetPack {jetson.jetpack or 'unknown'}; {packages}",
                f"jetson: power mode {jetson.power_mode or 'unknown'}; {clocks or 'clocks unknown'}",
            ]
        return lines

    def json(self) -> str:
        """Everything, as JSON; ``docs/jetson.md`` describes the keys. A number that is not told is null."""
        whole = asdict(self) | {"schema_version": SCHEMA_VERSION, "works": not self.why_not(), "why": self.why_not()}
        return json.dumps(_finite(whole), indent=1, ensure_ascii=False, allow_nan=False)


def diagnose(root: Path, plan: Plan | None, store: Path) -> Diagnosis:
    """Look at this machine, or at what a folder holds of another one's files.

    Args:
        root: where ``etc``, ``proc``, ``sys``, ``usr`` and ``var`` lie.
        plan: None asks about the machine alone.
        store: where results would go; its disk is checked for space.
    """
    jetson, memory = jetson_here(root), memory_here(root, store)
    needed = plan.variants.backends if plan is not None else ("tensorrt",) if jetson is not None else ()
    interpreter = interpreter_here()
    need_mib = 0
    if plan is not None and "tensorrt" in needed:
        need_mib = build_need_mib(plan.resolved(plan.model.source), plan.build.workspace_mib)
    notices = [*memory_findings(memory, need_mib, jetson is not None)]
    if plan is not None and plan.trains() and (reason := library.why_not()):
        notices.append(Notice("bad", "training", reason.partition(";")[0], library.INSTALL))
    is_pytorch = plan is not None and pytorch.recognises(plan.resolved(plan.model.source)) and not plan.packed.manifest
    if is_pytorch and (reason := library.why_not_export()):
        notices.append(Notice("bad", "source", reason.partition(";")[0], library.INSTALL_EXPORTER))
    if jetson is not None:
        notices = [*jetson_findings(jetson, interpreter, needed), *notices]
    if len(installed := wheels()) > 1:
        sentence = f"{' and '.join(installed)} are installed into one folder, and the later one overwrote the other"
        notices.append(
            Notice("warning", "onnxruntime", sentence, f"pip uninstall {' '.join(DISTRIBUTIONS)}, install one")
        )
    return Diagnosis(
        machine=this_machine(root),
        memory=memory,
        jetson=jetson,
        interpreter=interpreter,
        backends=tuple(survey()),
        needed=needed,
        onnxruntime=installed,
        providers=provider_links(),
        build_need_mib=need_mib,
        findings=tuple(notices),
        extras=extras(),
    )


def interpreter_here() -> Interpreter:
    """The Python that runs this, and where it finds TensorRT: in itself, or in another that it asks."""
    python, versions = ".".join(platform.python_version_tuple()[:2]), installed_versions()
    try:
        place = tensorrt.place()
    except Unavailable:  # Said of the backend, below.
        return Interpreter(python, sys.executable, "", versions)
    other = f"{place.python} ({place.python_version})" if place.python else ""
    return Interpreter(python, sys.executable, place.location, versions | dict(place.versions), other)


def jetson_findings(jetson: Jetson, interpreter: Interpreter, needed: Sequence[str]) -> Iterator[Notice]:
    """Everything about a Jetson but its memory, the worst first."""
    release = jetson.release()
    if release is None:
        sentence = f"L4T {jetson.l4t} is not in this program's table" if jetson.l4t else "the L4T version is unknown"
        yield Notice("warning", "jetpack", f"{sentence}, so its versions are not checked")
    else:
        yield from _release(jetson, release, interpreter)
    if "tensorrt" in needed:
        yield from _tensorrt(jetson, release, interpreter)
        yield from _pycuda(jetson, interpreter)
    if "tensorrt_rtx" in needed:
        sentence = f"TensorRT for RTX does not support compute capability {jetson.compute_capability or 'of a Jetson'}"
        yield Notice("bad", "backends", sentence, 'write backends = ["tensorrt"] into [variants]')
    yield from _mixed(jetson)
    yield from _power(jetson)


def memory_findings(memory: Memory, need_mib: int, shared: bool) -> Iterator[Notice]:
    """Whether a build fits. ``shared``: the GPU uses the main memory, which swap cannot stand in for."""
    if memory.available_mib and memory.available_mib < need_mib:
        sentence = f"{memory.available_mib} MiB are available, a build of this model takes about {need_mib} MiB"
        do = "close other programs (the desktop: sudo systemctl isolate multi-user.target), or lower workspace_mib"
        swap = f" ({memory.swap_mib + memory.zram_mib} MiB of swap help the CPU's part only)" if shared else ""
        yield Notice("warning", "memory", sentence + swap, do)
    if shared and memory.total_mib and not memory.swap_mib:
        sentence = "there is no swap on a disk: a build that needs too much memory is killed at once"
        yield Notice("note", "swap", sentence, "8 GiB of it are enough for most models; on NVMe rather than an SD card")
    if memory.disk_free_mib < DISK_MIB:
        yield Notice("warning", "disk", f"{memory.disk_free_mib} MiB are free where results go", "free disk space")


def _release(jetson: Jetson, release: Release, interpreter: Interpreter) -> Iterator[Notice]:
    installed = jetson.packages.get("tensorrt", release.tensorrt)
    if _numbers(installed) < OLDEST_TENSORRT:
        sentence = f"JetPack {jetson.jetpack} (L4T {jetson.l4t}) has TensorRT {installed}, 8.5 is the oldest that works"
        if jetson.soc in NO_NEWER_JETPACK:
            yield Notice(
                "bad", "jetpack", sentence, "there is no newer JetPack for this module, so it is not supported"
            )
        else:
            yield Notice("bad", "jetpack", sentence, "flash JetPack 5.1.6 (Xavier), 6 or 7.2 (Orin)")
        return
    python = jetson.packages.get("python", release.python)
    if _numbers(python) < OLDEST_PYTHON and not interpreter.tensorrt:
        yield Notice(
            "bad",
            "python",
            f"JetPack {jetson.jetpack} makes TensorRT for its own Python {_two(python)} alone, and no such one is "
            "asked for it",
            f"scripts/build_on_jetson makes what it takes; by hand: {PYTHON_VARIABLE}=PATH of a {_two(python)} with "
            "what scripts/constraints-3.8.txt lists",
        )


def _tensorrt(jetson: Jetson, release: Release | None, interpreter: Interpreter) -> Iterator[Notice]:
    library, bindings = jetson.packages.get("tensorrt", ""), jetson.packages.get("tensorrt_bindings", "")
    apt = jetson.bindings[-1] if jetson.bindings else ""
    if not library or not (apt or interpreter.tensorrt):
        lacks = "TensorRT is not installed" if not library else f"TensorRT {library} has no bindings for Python"
        yield Notice("bad", "tensorrt", lacks, BINDINGS)
    if library and bindings and library != bindings:
        sentence = f"libnvinfer is {library}, python3-libnvinfer is {bindings}; one cannot load the other"
        yield Notice("bad", "tensorrt", sentence, "sudo apt install --only-upgrade python3-libnvinfer")
    if release is not None and library and _numbers(library)[:2] != _numbers(release.tensorrt)[:2]:
        sentence = (
            f"TensorRT {library} where L4T {jetson.l4t} brings {release.tensorrt}: engines of one do not load in it"
        )
        yield Notice("warning", "tensorrt", sentence, "build where the engine is going to run")
    apt_python = _two(jetson.packages.get("python", ""))
    if apt and not interpreter.tensorrt and _numbers(apt_python) >= OLDEST_PYTHON:
        sentence = f"{apt} is Python {apt_python}'s; {interpreter.executable} ({interpreter.python}) does not see it"
        yield Notice("bad", "python", sentence, f"{VENV} makes an environment that does")
    if interpreter.tensorrt and "dist-packages" not in interpreter.tensorrt:
        yield from _foreign(library, jetson, interpreter)
    numbers = _numbers(library)
    if numbers >= ELEVEN:
        yield from _eleven(jetson, library)
    if library and jetson.compute_capability in ("7.2", "8.7") and DLA_GAP[0] <= numbers < DLA_GAP[1]:
        yield Notice("note", "dla", f"TensorRT {library} builds nothing for DLA (10.7 did, 11.4.1 does again)")


def _eleven(jetson: Jetson, library: str) -> Iterator[Notice]:
    """TensorRT 11, which no JetPack brings: its package for servers (SBSA) is that for a Jetson too."""
    back = "go back to JetPack's own TensorRT"
    if _numbers(library) < FIRST_ELEVEN:
        sentence = f"TensorRT {library} supports no Jetson; of 11 the first that does is 11.4.1, with JetPack 7.2.2"
        yield Notice("bad", "tensorrt", sentence, f"install 11.4.1, or {back}")
    elif _numbers(jetson.l4t) < FIRST_L4T_OF_ELEVEN:
        sentence = f"TensorRT {library} supports JetPack 7.2.2 and later, this is {jetson.jetpack or jetson.l4t}"
        yield Notice("bad", "tensorrt", sentence, f"upgrade JetPack, or {back}")
    elif jetson.soc == "tegra234" and "AGX" not in jetson.board:
        sentence = f"TensorRT {library} supports of Orin the AGX alone, this is {jetson.board or 'another module'}"
        yield Notice("warning", "tensorrt", sentence, back)
    else:
        sentence = f"TensorRT {library} needs JetPack 7.2.2 or later, and has INT8 by Q/DQ alone"
        yield Notice("note", "tensorrt", sentence, 'write int8 = "qdq" in [build], and build engines of 10 again')


def _foreign(library: str, jetson: Jetson, interpreter: Interpreter) -> Iterator[Notice]:
    """A tensorrt that pip installed stands before apt's."""
    version = interpreter.versions.get("tensorrt", "")
    if _numbers(version)[:3] == _numbers(library)[:3]:
        sentence = f"{interpreter.tensorrt} ({version}) is not JetPack's own, but of the same version as libnvinfer"
        yield Notice("note", "tensorrt", sentence)
        return
    sentence = (
        f"{interpreter.tensorrt} ({version or 'version unknown'}) is not JetPack's: pip's wheels for aarch64 are made "
        f"for servers (SBSA), and hide libnvinfer {library or 'of JetPack'}"
    )
    level: Level = "warning" if _numbers(jetson.l4t) >= (38,) else "bad"
    yield Notice(
        level, "tensorrt", sentence, "pip uninstall tensorrt, in an environment made with --system-site-packages"
    )


def _pycuda(jetson: Jetson, interpreter: Interpreter) -> Iterator[Notice]:
    version, cuda = interpreter.versions.get("pycuda", ""), jetson.packages.get("cuda", "")
    if not version:
        dashed = "-".join(cuda.split(".")[:2])
        if not jetson.nvcc:
            sentence = "nvcc is not at /usr/local/cuda/bin, and pycuda is compiled"
            names = f"cuda-nvcc-{dashed} cuda-cudart-dev-{dashed} libcurand-dev-{dashed}" if cuda else "cuda-toolkit"
            yield Notice("bad", "cuda", sentence, f"sudo apt install {names} python3-dev g++")
        other = interpreter.tensorrt_python.partition(" (")[0]
        install = f"PATH=/usr/local/cuda/bin:$PATH {other} -m pip install pycuda==2025.1.2" if other else PYCUDA
        yield Notice("bad", "pycuda", "is not installed", install)
    elif _numbers(cuda) >= (13,) and _numbers(version) < CUDA_13_NEEDS_PYCUDA:
        yield Notice("bad", "pycuda", f"{version} does not know CUDA {cuda}, 2025.1.2 is the first that does", PYCUDA)


def _mixed(jetson: Jetson) -> Iterator[Notice]:
    versions = sorted(set(jetson.l4t_packages.values()), key=_numbers)
    if len(versions) > 1:
        odd = [name for name, version in jetson.l4t_packages.items() if version != versions[-1]]
        sentence = f"packages of L4T {' and '.join(versions)} are mixed ({len(odd)} older, such as {odd[0]})"
        yield Notice("warning", "l4t", sentence, "sudo apt full-upgrade, and reboot")


def _power(jetson: Jetson) -> Iterator[Notice]:
    if jetson.num_overcurrent > 0:
        sentence = f"the hardware has throttled {jetson.num_overcurrent} times since boot because of over-current"
        yield Notice(
            "warning", "power", sentence, "measured latencies are too high: check the power supply, and reboot"
        )
    modes = ", ".join(jetson.power_modes)
    if not jetson.power_mode:
        yield Notice("warning", "power", "the power mode is unknown, so the report cannot state it", "nvpmodel -q")
    elif not jetson.power_mode.startswith("MAXN"):
        sentence = f"mode {jetson.power_mode} of {modes}: results hold for it only"
        do = "sudo nvpmodel -m NUMBER changes it (some ask for a restart); benchmark --power-mode measures another"
        yield Notice("note", "power", sentence, do)
    free = [clock for clock in jetson.clocks if not clock.is_fixed() and not math.isnan(clock.high_mhz)]
    if free:
        sentence = f"{', '.join(map(_span, free))}: latency depends on the preceding load"
        do = "sudo jetson_clocks --store, then sudo jetson_clocks; --restore after"
        yield Notice("warning", "clocks", sentence, do)


def _span(clock: Clock) -> str:
    return f"{clock.name} moves from {clock.low_mhz:.0f} to {clock.high_mhz:.0f} MHz"


def _why_not(state: BackendState, simulates: bool, jetson: Jetson | None) -> str:
    """Why a plan with this backend cannot run here; an engine that only cannot run is judged by a simulation."""
    if state.why_not_build:
        return f"{state.name}: {state.why_not_build.removeprefix(f'{state.name}: ')}"
    if state.why_not_run and (jetson is not None or not simulates):
        return f"{state.name}: {state.why_not_run.removeprefix(f'{state.name}: ')}"
    return ""


def _finite(value: Any) -> Any:
    """The same plain data with None for every number that is NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _two(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _numbers(version: str) -> tuple[int, ...]:
    """The version as numbers, as far as it is numbers; empty for none."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
