"""A fleet whose devices are workers of a Dask scheduler: two on loopback, TLS, and what goes wrong with them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from calibration.file_digest import digest_now
from pipeline.gate.baseline import read_baseline
from pipeline.gate.generations import current_folder
from pipeline.source_files import PACKAGES, ROOT
from tests.conftest import Command
from tests.pipeline.nightly.fleets import change, fleet_of
from tests.pipeline.workers.cluster import Cluster, certificates, cluster_in, needs_dask, wait_for

STORE = Path(".trtforge")

FLEET = """
[fleet]
plans = ["*/plan.toml"]
scheduler = "{address}"
depot = "file://{depot}"
tls = {{ ca = "{ca}", cert = "{cert}", key = "{key}" }}

[nightly]
budgets = ["size_mib <= 1.0 x baseline"]
html = false

[device.orin.set]
pack = {{ backends = ["onnxruntime"] }}
gate = {{ pays = false, html = false }}
variants = {{ precisions = ["fp32"] }}
"""
X86 = FLEET[FLEET.index("\n[device") :].replace("orin", "x86")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    needs_dask()
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    folder = tmp_path_factory.mktemp("cluster")
    with cluster_in(folder, {"orin-01": "orin", "x86-01": "x86"}, certificates(folder / "pki", "hub")) as cluster:
        yield cluster


def text_for(cluster: Cluster, devices: str = "") -> str:
    return FLEET.format(address=cluster.address, depot=cluster.depot, **cluster.tls) + devices


def night(fleet: Path) -> dict[str, dict[str, Any]]:
    """What is told of each line."""
    lines = json.loads((fleet.parent / "nightly/nightly.json").read_text())["lines"]
    return {f"{line['model']}.{line['device']}": line for line in lines}


def states(fleet: Path) -> dict[str, tuple[str, int]]:
    return {name: (line["state"], line["status"]) for name, line in night(fleet).items()}


@pytest.mark.slow
def test_two_devices_from_their_first_night_on(plan: Path, command: Command, cluster: Cluster) -> None:
    devices = X86.format() + X86.format().replace("x86", "thor")
    fleet = fleet_of(plan, "a", text=text_for(cluster, devices))
    first = command("nightly", fleet)
    # A device that no worker has is a line, and the others go on.
    assert states(fleet) == {"a.orin": ("made", 0), "a.thor": ("failed", 3), "a.x86": ("made", 0)}, first.err
    assert first.status == 3
    sentence = night(fleet)["a.thor"]["sentence"]
    assert sentence == (
        f"device thor: no worker at {cluster.address} has its tag; start there `dask worker {cluster.address} "
        '--resources "thor=1" --nthreads 1`'
    )
    record = night(fleet)["a.orin"]
    assert (record["outcome"], record["promoted"], record["baseline"]) == ("pass", True, "")
    folder = current_folder("a.orin", STORE)
    assert folder is not None
    good = read_baseline(folder).record.engine
    assert good.digest == record["candidate"]["digest"], "what was built there is the last good engine here"
    gate = json.loads((fleet.parent / "nightly/lines/a.orin/gate/gate.json").read_text())
    engine = Path(gate["engines"][0]["path"])
    assert engine.parent == fleet.parent / "nightly/lines/a.orin/engines/fp32@onnxruntime"
    assert digest_now(engine) == good.digest
    assert not list(cluster.depot.glob("tasks/*")), "what was brought is no longer in the depot"
    assert not (cluster.folder / "hub/.trtforge").exists(), "nothing is built on the scheduler's machine"

    # Nothing changed: nothing is sent.
    change(fleet, X86.format().replace("x86", "thor"), "")
    bundles = sorted(cluster.depot.rglob("*.tar"))
    second = command("nightly", fleet)
    assert (second.status, states(fleet)) == (0, {"a.orin": ("served", 0), "a.x86": ("served", 0)}), second.err
    assert sorted(cluster.depot.rglob("*.tar")) == bundles

    # Another budget: judged there beside the last good engine, which is sent; nothing is built again.
    change(fleet, "1.0 x", "1.1 x")
    third = command("nightly", fleet, "--only", "a.orin")
    assert third.status == 0, third.err
    record = night(fleet)["a.orin"]
    assert record["why"] == ["[gate], [benchmark] or the metric changed"]
    assert (record["baseline"], record["outcome"]) == (good.digest, "pass")
    log = (fleet.parent / "nightly/lines/a.orin/log.txt").read_text()
    assert "trtforge: build " in log
    assert "  served  fp32@onnxruntime" in log
    assert shlex.split(record["command"])[1:] == (
        ["nightly", str(fleet), "--only", "a.orin", "--always", "--store", ".trtforge"]
    )


def test_the_census(plan: Path, command: Command, cluster: Cluster) -> None:
    fleet = fleet_of(plan, "a", text=text_for(cluster))
    seen = command("census", fleet)
    assert seen.status == 0, seen.err
    assert "orin-01" in seen.out
    assert "x86-01" not in seen.out, "it is no device of this fleet"
    change(fleet, "[device.orin.set]", '[device.orin]\nexpects = { tensorrt = "10.3" }\n[device.orin.set]')
    refused = command("census", fleet)
    assert refused.status == 3
    assert refused.err == (
        "trtforge: device orin: worker orin-01: has no TensorRT, 10.3 is expected (expects); install it, or write what "
        "it has\n"
    )
    # A night is the same, and does not forget what became of the line last.
    assert command("nightly", fleet).status == 3
    assert not (fleet.parent / "nightly/lines/a.orin/line.json").exists()
    assert command("nightly", fleet, "--dry-run").out.startswith("a.orin: device orin: worker orin-01: has no TensorRT")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_no_end_of_its_line(plan: Path, command: Command, cluster: Cluster) -> None:
    """Once the scheduler hands the line on by itself; the second time it gives it up, and it is handed over again."""
    fleet = fleet_of(plan, "a", text=text_for(cluster, X86.format()))
    with killing(cluster, "orin-01", times=2):
        done = command("nightly", fleet, "--always")
    assert (done.status, states(fleet)) == (0, {"a.orin": ("made", 0), "a.x86": ("made", 0)}), done.out + done.err
    log = (fleet.parent / "nightly/lines/a.orin/log.txt").read_text()
    assert log.startswith("attempt 3 of 3: a worker died while it was at work on this\n")


def begun(cluster: Cluster, device: str, attempt: int = 0) -> None:
    """Wait until a worker has begun with a line of the device."""
    markers = f"tasks/*/begun-{attempt}"
    wait_for("a line was begun", lambda: any(device in m.read_text() for m in cluster.depot.glob(markers)))


@contextmanager
def killing(cluster: Cluster, worker: str, times: int = 1) -> Iterator[None]:
    """Kill -9 each time when it has begun with a line."""

    def kill() -> None:
        for attempt in range(times):
            begun(cluster, "orin", attempt)
            cluster.kill_worker(worker)

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()


SLOW = """
import os, time

def one(outputs, labels):
    if os.environ["HOME"].endswith("orin-01"):
        time.sleep(3600)
    return 1.0
"""
"""A metric that does not come to an end on the worker."""


@pytest.mark.slow
def test_an_interrupt_on_the_hub_ends_what_its_workers_do(plan: Path, cluster: Cluster) -> None:
    import psutil

    fleet = fleet_of(plan, "a", "b", text=text_for(cluster))
    for name in "ab":
        (fleet.parent / name / "slow.py").write_text(SLOW)
        change(fleet.parent / name / "plan.toml", 'metric = "top1"', 'metric = "slow:one"')
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    hub = subprocess.Popen([sys.executable, "-m", "pipeline", "nightly", str(fleet)], env=environment)
    worker = psutil.Process(cluster.worker_pid("orin-01"))

    def at_work() -> bool:
        return any("pipeline.workers.device" in " ".join(each.cmdline()) for each in worker.children())

    begun(cluster, "orin")
    wait_for("it is at work", at_work)
    hub.send_signal(signal.SIGINT)
    assert hub.wait() == 130
    wait_for("the worker is free", lambda: not at_work())
    lines = [marker.read_text() for marker in cluster.depot.glob("tasks/*/begun-0")]
    assert len(lines) == 1, f"the other line was not begun when the first one was killed: {lines}"
    assert not (fleet.parent / "nightly/nightly.json").exists()


def test_what_cannot_be_built_is_tried_once(plan: Path, command: Command, cluster: Cluster) -> None:
    text = text_for(cluster).replace('"onnxruntime"', '"tensorrt"')
    fleet = fleet_of(plan, "a", text=text)
    failed = command("nightly", fleet)
    assert failed.status == 3, failed.out
    assert "fp32@tensorrt: cannot be gated where it cannot run: tensorrt: is not" in night(fleet)["a.orin"]["sentence"]
    assert "attempt" not in (fleet.parent / "nightly/lines/a.orin/log.txt").read_text()


def test_a_depot_that_is_away(plan: Path, command: Command, cluster: Cluster) -> None:
    fleet = fleet_of(plan, "a", text=text_for(cluster))
    change(fleet, f"file://{cluster.depot}", f"file://{cluster.depot}/none")
    refused = command("nightly", fleet)
    assert refused.status == 3
    sentence = f"file://{cluster.depot}/none: the depot is not there; mount it, or make that folder"
    assert night(fleet)["a.orin"]["sentence"] == sentence


@pytest.mark.slow
def test_a_worker_of_another_version_and_one_that_goes(
    plan: Path, command: Command, cluster: Cluster, tmp_path: Path
) -> None:
    """Both with a device of their own."""
    other = tmp_path / "other"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "pipeline/errors.py").open("a") as source:
        source.write("# Another version.\n")
    cluster.start_worker("old-01", "old", root=other)
    cluster.start_worker("nano-01", "nano")
    log = cluster.folder / "hub.log"
    wait_for("the workers", lambda: all(f"name: {name}" in log.read_text() for name in ("old-01", "nano-01")))
    devices = X86.format().replace("x86", "old") + X86.format().replace("x86", "nano")
    fleet = fleet_of(plan, "a", text=text_for(cluster, devices).replace("[nightly]", "wait_s = 1\n[nightly]"))

    def stop() -> None:
        begun(cluster, "nano")
        cluster.stop("nano-01")

    stopped = threading.Thread(target=stop)
    stopped.start()
    done = command("nightly", fleet, "--only", "nano", "--only", "old")
    stopped.join()
    cluster.stop("old-01")
    assert done.status == 3, done.out
    assert states(fleet) == {"a.nano": ("failed", 3), "a.old": ("failed", 3)}
    sentence = night(fleet)["a.nano"]["sentence"]
    assert sentence == "device nano: no worker has had its tag for 1 s; start it, and run again"
    sentence = night(fleet)["a.old"]["sentence"]
    assert sentence.startswith("device old: worker old-01: runs trtforge 0.1.0 (source "), sentence
    assert sentence.endswith("; install the same one there")
