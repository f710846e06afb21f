"""Libraries of plugins that a plan names: packed, loaded in a bundle if allowed by name, and signed with engines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines import backend
from engines.plugin_library import NAMED, sha256_of_library
from engines.signing.envelope import opened, public_key
from pipeline.bundle import read_sums
from pipeline.command.bundle_functions import check_functions
from pipeline.command.on_devices import RUN, arguments_of
from pipeline.errors import ConfigError
from pipeline.nightly.executors import shipment_of
from pipeline.nightly.fleet import lines_of, read_fleet
from pipeline.nightly.line import Job, Wanted
from pipeline.plan import read_plan
from pipeline.release.bundle_writer import code_allowed
from tests.engines.plugins import GIVES, NOTHING, for_another_processor, plugin_library
from tests.pipeline.bundles import packed, unpacked
from tests.pipeline.nightly.fleets import fleet_of

if TYPE_CHECKING:
    from tests.conftest import Command

ALLOW = ("--allow", "plugins/libmy.so")


@pytest.fixture(autouse=True)
def none_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run names is gone afterwards."""
    monkeypatch.setenv(NAMED, "")


def with_plugins(plan: Path, source: str) -> Path:
    """The plan with a library below its folder; FP32 alone."""
    library = plugin_library(plan.parent / "libs", source)
    text = plan.read_text().replace('["fp32", "int8"]', '["fp32"]')
    shapes = "[model.inputs.image]\nmin = [1, 4, 8, 8]\nopt = [1, 4, 8, 8]\nmax = [32, 4, 8, 8]\n"
    plan.write_text(f'{text}\n{shapes}[build]\nplugins = ["libs/libmy.so"]\n')
    return library


@pytest.fixture
def device(command: Command, plan: Path, warm_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked bundle for TensorRT for RTX, with a library that its real registry takes."""
    if reason := backend("tensorrt_rtx").why_not_build():
        pytest.skip(reason)
    with_plugins(plan, GIVES)
    plan.write_text(plan.read_text() + '[pack]\nbackends = ["tensorrt_rtx"]\n')
    folder = unpacked(packed(command, plan, store=warm_store))
    monkeypatch.chdir(folder)
    return folder


def test_a_library_is_packed_for_whatever_processor_it_is(command: Command, plan: Path, warm_store: Path) -> None:
    library = for_another_processor(with_plugins(plan, NOTHING))
    folder = unpacked(packed(command, plan, store=warm_store))
    assert (folder / "plugins/libmy.so").read_bytes() == library.read_bytes()
    assert read_sums(folder)["plugins/libmy.so"] == sha256_of_library(library)
    assert read_plan(folder / "plan.toml").build.plugins == ("plugins/libmy.so",)


def test_devices_and_workers_are_told_to_load_it(command: Command, plan: Path, warm_store: Path) -> None:
    with_plugins(plan, NOTHING)
    sent = read_plan(plan)
    there = read_plan(unpacked(packed(command, plan, store=warm_store)) / "plan.toml")
    with pytest.raises(ConfigError, match=r"--allow plugins/libmy\.so"):
        check_functions(there, "gate", ())
    check_functions(there, "gate", ("plugins/libmy.so",))
    assert arguments_of(sent, RUN, "tensorrt")[-2:] == ALLOW
    fleet = read_fleet(fleet_of(plan, "a"))
    (line,) = lines_of(fleet)
    job = Job(fleet, warm_store, None, Wanted(), lambda _arguments: 0)
    assert shipment_of(job, line, line.plan()).words[-2:] == ALLOW
    metric = replace(sent, data=replace(sent.data, metric="my:metric"))
    assert code_allowed(metric) == ("--allow", "my:metric,plugins/libmy.so")


def test_another_power_mode_is_asked_for_on_the_command_line_too(
    command: Command, plan: Path, warm_store: Path
) -> None:
    """A bundle of somebody else changes no device; on one's own devices one's own plan does."""
    there = read_plan(unpacked(packed(command, plan, store=warm_store)) / "plan.toml")
    there = replace(there, benchmark=replace(there.benchmark, power_mode=("MAXN",)))
    words = r"power_mode is power_mode, which sets this device to MAXN for a while: .* give --allow power_mode"
    with pytest.raises(ConfigError, match=words):
        check_functions(there, "benchmark", ())
    check_functions(there, "benchmark", ("power_mode",))
    assert code_allowed(there) == ("--allow", "power_mode")


def test_it_is_not_loaded_unasked(command: Command, device: Path) -> None:
    for verb in ("run", "build", "benchmark", "gate"):
        refused = command(verb, "plan.toml")
        assert refused.status == 2
        assert refused.err.endswith(
            "plan.toml: [build] plugins 1 is plugins/libmy.so, a shared library, which TensorRT would load: code that "
            "came with the bundle's plan is not run unasked; read it and what it imports, and if you trust it, give "
            "--allow plugins/libmy.so\n"
        )
    assert not (device / ".trtforge").exists()


def test_it_is_loaded_once_it_is_allowed_and_signed_with_the_engine(
    command: Command, device: Path, tmp_path: Path
) -> None:
    pytest.importorskip("securesystemslib")
    pytest.importorskip("cryptography")
    built = command("build", "plan.toml", *ALLOW)
    assert built.status == 0, built.err
    (engine,) = (device / ".trtforge/build").glob("*/model.rtx.plan")
    sha256 = sha256_of_library(device / "plugins/libmy.so")
    record = json.loads(engine.with_name("record.json").read_text())
    assert record["options"]["plugins"] == [{"name": "libmy.so", "sha256": sha256, "is_inside": False}]
    assert command("sign", "--new-key", tmp_path / "release.key").status == 0
    assert command("sign", engine, "--key", tmp_path / "release.key").status == 0
    (signature,) = (device / ".trtforge/signatures").iterdir()
    subjects = opened(signature, [public_key(tmp_path / "release.pub")]).statement["subject"]
    assert {"name": "plugin:libmy.so", "digest": {"sha256": sha256}} in subjects
    assert subjects[0]["name"] == engine.name
    assert command("verify", engine, "--trusted", tmp_path / "release.pub").status == 0


def test_one_that_is_not_as_it_was_packed_is_refused(command: Command, device: Path) -> None:
    library = device / "plugins/libmy.so"
    library.write_bytes(library.read_bytes() + b" ")
    refused = command("build", "plan.toml", *ALLOW)
    assert refused.status == 2
    assert "plugins/libmy.so: is not what was packed (SHA-256 differs)" in refused.err


def test_bad_input_is_one_sentence(command: Command, plan: Path, tiny: Path) -> None:
    other = for_another_processor(plugin_library(plan.parent, NOTHING))
    model, output = tiny / "tiny.onnx", ("-o", tiny / "engine.plan")
    rtx = ("--backend", "tensorrt_rtx")
    effect = (
        "has no effect on an engine for onnxruntime, it is for onnxruntime_tensorrt, tensorrt and tensorrt_rtx; drop it"
    )
    for arguments, status, words in (
        ((model, *rtx, "--plugins", "none.so", *output), 2, "plugins: none.so does not exist, or is no file; name the"),
        ((model, "--backend", "onnxruntime", "--plugins", other, *output), 2, f"--plugins: {effect}"),
        ((model, *rtx, "--plugins", other, *output), 3, f"{other}: is compiled for "),
    ):
        refused = command("build", *arguments)
        assert (refused.status, words in refused.err) == (status, True), refused.err
    refused = command("infer", plan, "--plugins", other)
    assert (refused.status, "--plugins: has no effect together with a plan" in refused.err) == (2, True), refused.err
    plan.write_text(plan.read_text() + f'[build]\nplugins = ["{other}"]\n')
    refused = command("build", plan)
    assert (refused.status, effect.replace("--", "") in refused.err) == (2, True), refused.err
