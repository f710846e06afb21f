"""Which workers are refused, and that a device is as good as the worst of them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from pipeline.workers.address import SchedulerAddress
from pipeline.workers.census import DeviceState, Expects, SeenWorker, census
from pipeline.workers.device import WorkerInfo, this_worker
from pipeline.workers.scheduler import Hub

ADDRESS = SchedulerAddress("tls://hub:8786", "hub", 8786, None)


@pytest.fixture(scope="module")
def orin() -> WorkerInfo:
    """This machine, were it a Jetson."""
    here = this_worker()
    return replace(here, tensorrt="10.3.0", power_mode="MAXN", free_mib=10 * 1024, describes="Orin", machine="m")


class Client:
    """What Dask's client says, of workers that are written here: name -> its tags and its answer."""

    def __init__(self, workers: dict[str, tuple[tuple[str, ...], Any]]) -> None:
        self.workers = workers

    def scheduler_info(self, n_workers: int) -> Any:
        assert n_workers == -1, "fewer are told by default"
        rows = {f"tls://{name}": {"name": name, "resources": dict.fromkeys(tags, 1)} for name, (tags, _) in
                self.workers.items()}  # fmt: skip
        return {"workers": rows}

    def run(self, _function: Any, text: str, *, workers: list[str], on_error: str) -> Any:
        assert (text, on_error) == ('{"ask": "census"}', "return")
        return {f"tls://{name}": answer for name, (_, answer) in self.workers.items() if f"tls://{name}" in workers}


def answer(info: WorkerInfo) -> str:
    return json.dumps({"status": 0, **asdict(info)})


def state(expects: Expects, **workers: Any) -> DeviceState:
    """The device orin, whose workers answer so."""
    hub = Hub(Client({name: (("orin",), text) for name, text in workers.items()}), ADDRESS)
    return census(hub, {"orin": expects})["orin"]


def test_one_as_it_must_be(orin: WorkerInfo) -> None:
    expects = Expects(tensorrt="10.3", power_mode="MAXN", free_gib=10)
    seen = state(expects, a=answer(orin), b=answer(replace(orin, free_mib=99_999)))
    assert (seen.refusal, [worker.name for worker in seen.workers]) == ("", ["a", "b"])
    assert seen.versions["tensorrt"] == "10.3.0"
    assert seen.digest == state(Expects(), a=answer(orin)).digest, "free disk and their number change nothing"
    assert seen.digest != state(Expects(), a=answer(replace(orin, tensorrt="10.7.0"))).digest


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tensorrt": "10.30.1"}, "has TensorRT 10.30.1, 10.3 is expected (expects); install it, or write what it has"),
        ({"tensorrt": ""}, "has no TensorRT, 10.3 is expected (expects); install it, or write what it has"),
        (
            {"power_mode": "15W"},
            "is in power mode 15W, MAXN is expected (expects); set it with nvpmodel, or write what it is",
        ),
        (
            {"power_mode": ""},
            "has no power mode, MAXN is expected (expects); set it with nvpmodel, or write what it is",
        ),
        ({"free_mib": 1536}, "has 1.5 GiB free, 5 GiB are expected (expects); make room there"),
    ],
)
def test_one_that_is_otherwise(orin: WorkerInfo, change: dict[str, Any], sentence: str) -> None:
    expects = Expects(tensorrt="10.3", power_mode="MAXN", free_gib=5)
    seen = state(expects, good=answer(orin), other=answer(replace(orin, **change)))
    assert seen.refusal == f"device orin: worker other: {sentence}"


def test_another_version(orin: WorkerInfo) -> None:
    seen = state(Expects(), a=answer(replace(orin, trtforge="0.0.9", source="ab12" * 16)))
    assert seen.refusal == (
        f"device orin: worker a: runs trtforge 0.0.9 (source ab12ab12ab12), here it is source {orin.source[:12]}; "
        "install the same one there"
    )


def test_one_that_says_something_else(orin: WorkerInfo) -> None:
    newer = answer(orin).replace('"trtforge"', '"release"', 1)
    assert "runs another version of trtforge" in state(Expects(), a=newer).refusal
    failed = state(Expects(), a='{"status": 4, "sentence": "the task\'s process was ended by SIGKILL: "}')
    assert failed.refusal == "device orin: worker a: the task's process was ended by SIGKILL: "
    absent = state(Expects(), a=ModuleNotFoundError("No module named 'pipeline'"))
    assert absent.refusal == (
        "device orin: worker a: cannot be asked (ModuleNotFoundError: No module named 'pipeline'); install trtforge "
        "there, and start it again"
    )


@pytest.mark.parametrize("text", ["", "[]", "Welcome to the device\n{}", "[" * 100_000])
def test_one_whose_answer_is_none_stops_no_other(orin: WorkerInfo, text: str) -> None:
    seen = state(Expects(), a=text, b=answer(orin))
    assert seen.refusal == (
        f"device orin: worker a: cannot be asked (ValueError: it answers {text[:100]!r}); install trtforge there, and "
        "start it again"
    )
    assert [worker.info for worker in seen.workers] == [None, orin]


def test_two_kinds_of_machines_have_two_tags(orin: WorkerInfo) -> None:
    seen = state(Expects(), a=answer(orin), b=answer(replace(orin, machine="n")))
    assert seen.refusal == (
        "device orin: its workers a, b are machines of different kinds; give each kind a tag of its own"
    )


def test_nobody() -> None:
    seen = state(Expects())
    assert seen == DeviceState("orin", (), seen.refusal)
    assert seen.refusal.startswith("device orin: no worker at tls://hub:8786 has its tag; start there `dask worker")
    assert SeenWorker("a", None, "").info is None
