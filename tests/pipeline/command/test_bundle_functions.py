"""Functions that came with a bundle are not imported unless the command line names them."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.bundles import packed, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Command

METRIC = """
from pathlib import Path
from right.answers import share

Path({ran!r}).write_text("imported")

def metric(outputs, labels):
    return share(outputs["scores"], labels)
"""
"""`RAN` lies outside the bundle: it says that the file was imported."""
REFERENCE = ("--backend", "reference")


@pytest.fixture(autouse=True)
def _bytecode_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an allowance sets counts for one test alone."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    yield
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture
def plan_with_metric(plan: Path) -> Path:
    (plan.parent / "counting.py").write_text(METRIC.format(ran=str(plan.parent / "RAN")))
    (plan.parent / "right").mkdir()
    (plan.parent / "right/__init__.py").write_text("")
    (plan.parent / "right/answers.py").write_text(
        "def share(scores, labels):\n    return float((scores.argmax(1) == labels).mean())\n"
    )
    change(plan, '"top1"', '"counting:metric"')
    change(plan, '["fp32", "int8"]', '["fp32"]')
    return plan


@pytest.fixture
def device(command: Command, plan_with_metric: Path, warm_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked bundle with a metric of its own, as another machine gets it: nothing of it was imported here."""
    folder = unpacked(packed(command, plan_with_metric, store=warm_store))
    for name in [name for name in sys.modules if name.split(".")[0] in ("counting", "right")]:
        del sys.modules[name]
    (plan_with_metric.parent / "RAN").unlink()
    monkeypatch.chdir(folder)
    return folder


def was_imported(device: Path) -> bool:
    return (device.parent.parent / "RAN").exists()


def change(plan: Path, old: str, new: str) -> None:
    text = plan.read_text()
    assert old in text
    plan.write_text(text.replace(old, new))


def test_a_plan_of_the_users_own_runs_its_functions_unasked(command: Command, plan_with_metric: Path) -> None:
    assert command("validate", plan_with_metric).status == 0
    assert (plan_with_metric.parent / "RAN").exists()
    for arguments in (("run", plan_with_metric), ("validate", plan_with_metric)):
        refused = command(*arguments, "--allow", "counting:metric")
        assert (refused.status, "--allow: has an effect only on the plan of a bundle, " in refused.err) == (2, True)


def test_no_verb_imports_what_came_with_a_bundle(command: Command, device: Path) -> None:
    change(device / "plan.toml", '"tensorrt"', '"reference"')
    metric = f"counting:metric, from {device.resolve() / 'counting.py'}"
    for verb in ("run", "build", "infer", "validate", "benchmark", "gate"):
        refused = command(verb, "plan.toml")
        assert refused.status == 2
        assert refused.err.endswith(
            f"plan.toml: [data] metric is {metric}: code that came with the bundle's plan is not run unasked; read it "
            "and what it imports, and if you trust it, give --allow counting:metric\n"
        )
    assert not was_imported(device)
    assert not list(device.rglob("__pycache__"))


def test_what_is_allowed_by_name_runs_again_and_again(command: Command, device: Path) -> None:
    for _ in range(2):
        assert command("run", "plan.toml", *REFERENCE, "--allow", "counting:metric").status == 0
    assert was_imported(device)
    assert not list(device.rglob("__pycache__")), "which no sum names"
    typo = command("run", "plan.toml", *REFERENCE, "--allow", "counting:metrik")
    assert typo.status == 2
    assert (
        "--allow 'counting:metrik': plan.toml names no such function or plugin; did you mean 'counting:metric'?"
        in typo.err
    )


def test_single_verbs_and_the_gate_take_the_allowance(command: Command, device: Path) -> None:
    change(device / "plan.toml", '"tensorrt"', '"reference"')
    for verb in ("build", "infer", "validate"):
        done = command(verb, "plan.toml", "--allow", "counting:metric")
        assert done.status == 0, done.err
    assert "has no effect together with a plan" in command("quantize", "plan.toml", "--allow", "counting:metric").err
    assert "there is nothing to quantize" in command("quantize", "plan.toml").err
    for arguments in (("infer", "m.onnx"), ("benchmark", "m.onnx"), ("validate", "m.onnx"), ("gate",)):
        refused = command(*arguments, "--allow", "counting:metric")
        assert (refused.status, "only on the plan of a bundle; drop it" in refused.err) == (2, True), refused.err


def test_data_of_a_function_and_a_module_from_elsewhere(command: Command, device: Path) -> None:
    change(device / "plan.toml", '"counting:metric"', '"os.path:samefile"')
    change(device / "plan.toml", '"samples.npz"', '"right.answers:share"')
    change(device / "plan.toml", 'labels = "labels"\n', "")
    refused = command("run", "plan.toml", *REFERENCE)
    assert refused.status == 2
    assert "[data] metric is os.path:samefile, of a module that is no file of the bundle; " in refused.err
    assert (
        f"[data.evaluation] path is right.answers:share, from {device.resolve() / 'right/answers.py'}: " in refused.err
    )
    assert "give --allow os.path:samefile,right.answers:share\n" in refused.err
    half = command("run", "plan.toml", *REFERENCE, "--allow", "os.path:samefile")
    assert "plan.toml: [data.evaluation] path is right.answers:share, from " in half.err
    assert "right.answers" not in sys.modules


def test_no_function_at_all(command: Command, device: Path) -> None:
    change(device / "plan.toml", '"counting:metric"', '"top1"')
    refused = command("run", "plan.toml", *REFERENCE, "--allow", "counting:metric")
    assert refused.status == 2
    assert (
        "--allow 'counting:metric': plan.toml names no such function or plugin, nor any other; drop it" in refused.err
    )
    assert command("run", "plan.toml", *REFERENCE).status == 0


def test_a_bundle_cannot_pass_for_a_folder_of_the_users(command: Command, device: Path) -> None:
    change(device / "plan.toml", 'manifest = "manifest.json"', 'manifest = ""')
    for _ in range(2):
        refused = command("run", "plan.toml", *REFERENCE)
        assert refused.status == 2
        assert "plan.toml: lies in a bundle (SHA256SUMS names it), but has no [packed] manifest" in refused.err
        digest = hashlib.sha256((device / "plan.toml").read_bytes()).hexdigest()
        (device / "SHA256SUMS").write_bytes(b"\xff\n" + f"{digest}  plan.toml\n".encode())
    assert not was_imported(device)


def test_what_python_compiled_is_no_file_of_a_bundle(command: Command, device: Path) -> None:
    (device / "__pycache__").mkdir()
    (device / "__pycache__" / f"counting.{sys.implementation.cache_tag}.pyc").write_bytes(b"anything")
    refused = command("run", "plan.toml", *REFERENCE, "--allow", "counting:metric")
    assert refused.status == 2
    assert (
        ".pyc: was not packed, SHA256SUMS does not name it, and Python would run it instead of the source"
        in refused.err
    )
    assert not was_imported(device)
