"""The identity of a machine, read from made-up system trees."""

import logging
from dataclasses import fields, replace
from pathlib import Path

import pytest

from pipeline.machine import identity
from pipeline.machine.identity import Gpu, Machine, gpus_from_nvidia_smi, installed_versions, this_machine

PC = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Example CPU 4000\nflags\t\t: fpu avx2 avx_vnni hypervisor\n\n"
    "processor\t: 1\nmodel name\t: Example CPU 4000\nflags\t\t: fpu avx2 avx_vnni hypervisor\n",
    "proc/meminfo": "MemTotal:       16384000 kB\nMemFree:         1000 kB\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/fs/cgroup/cpu.max": "150000 100000\n",
}

JETSON = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
    "proc/meminfo": "MemTotal:       31457280 kB\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, BOARD: generic\n# more\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MODE_30W >\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def no_real_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty search path, where a test may put its own nvidia-smi."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


def nvidia_smi(programs: Path, script: str) -> None:
    program = programs / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_a_pc(tmp_path: Path) -> None:
    found = this_machine(tree(tmp_path, PC))
    assert found.cpu == "Example CPU 4000"
    assert found.isa == ("avx2", "avx_vnni"), "only flags that matter, in a fixed order"
    assert found.memory_mib == 16000
    assert found.governor == "powersave"
    assert found.cpu_quota_cores == 1.5
    assert (found.board, found.jetson_release, found.power_mode, found.gpus) == ("", "", "", ())


def test_a_jetson(tmp_path: Path) -> None:
    found = this_machine(tree(tmp_path, JETSON))
    assert found.board == "NVIDIA Jetson AGX Orin Developer Kit"
    assert found.cpu == "ARM implementer 0x41, part 0xd42"
    assert "asimddp" in found.isa
    assert found.jetson_release == "# R36 (release), REVISION: 4.3, BOARD: generic"
    assert found.power_mode == "MODE_30W"
    assert "power mode MODE_30W" in found.describe()
    assert "NVIDIA Jetson AGX Orin Developer Kit" in found.describe()


def test_a_power_mode_without_a_table_of_names_is_its_number(tmp_path: Path) -> None:
    found = this_machine(tree(tmp_path, {"var/lib/nvpmodel/status": "pmode:0002"}))
    assert found.power_mode == "2"


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    found = this_machine(tmp_path)
    assert found.cpu
    assert (found.isa, found.memory_mib, found.cpu_quota_cores, found.governor) == ((), 0, 0.0, "")
    assert "memory unknown" in found.describe()


def test_an_unlimited_control_group_is_no_quota(tmp_path: Path) -> None:
    assert this_machine(tree(tmp_path, {"sys/fs/cgroup/cpu.max": "max 100000"})).cpu_quota_cores == 0.0


def test_gpus_as_the_driver_lists_them(no_real_gpu: Path) -> None:
    nvidia_smi(no_real_gpu, 'echo "NVIDIA Example 1, 550.1, 8192, 75.00"; echo "Orin (nvgpu), 540.4, [N/A], [N/A]"')
    assert gpus_from_nvidia_smi() == (
        Gpu("NVIDIA Example 1", "550.1", 8192, 75.0),
        Gpu("Orin (nvgpu)", "540.4", 0, 0.0),
    )
    machine = this_machine(no_real_gpu)
    assert "NVIDIA Example 1 (driver 550.1)" in machine.describe()
    assert machine.processor(gpu=True) == "NVIDIA Example 1, Orin (nvgpu)"
    assert machine.processor(gpu=False) == machine.cpu
    assert replace(machine, gpus=(), board="a Jetson").processor(gpu=True) == "a Jetson"
    assert replace(machine, gpus=(), board="").processor(gpu=True) == machine.cpu


def test_a_failing_nvidia_smi_is_a_warning(no_real_gpu: Path, caplog: pytest.LogCaptureFixture) -> None:
    nvidia_smi(no_real_gpu, 'echo "couldn\'t communicate with the NVIDIA driver"; exit 9')
    with caplog.at_level(logging.WARNING):
        assert gpus_from_nvidia_smi() == ()
    assert "exit status 9 (couldn't communicate with the NVIDIA driver)" in caplog.text


def test_an_nvidia_smi_that_hangs_is_a_warning(
    no_real_gpu: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(no_real_gpu, "while :; do :; done")
    monkeypatch.setattr(identity, "_SMI_SECONDS", 0.2)
    with caplog.at_level(logging.WARNING):
        assert gpus_from_nvidia_smi() == ()
    assert "did not answer" in caplog.text


def test_no_nvidia_smi_is_nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    assert gpus_from_nvidia_smi() == ()
    assert caplog.text == ""


def test_equal_machines_have_equal_digests_and_no_differences(tmp_path: Path) -> None:
    first, second = this_machine(tree(tmp_path, PC)), this_machine(tmp_path)
    assert first == second
    assert first.digest() == second.digest()
    assert first.differences(second) == ()


@pytest.mark.parametrize("name", [field.name for field in fields(Machine)])
def test_every_field_counts(tmp_path: Path, name: str) -> None:
    found = this_machine(tree(tmp_path, PC))
    value = getattr(found, name)
    other = (*value, "x") if isinstance(value, tuple) else value + ("x" if isinstance(value, str) else 1)
    changed = replace(found, **{name: other})  # type: ignore[arg-type]
    if name != "gpus":
        assert changed.digest() != found.digest()
    assert found.differences(changed) == (f"{name}: {value!r} against {other!r}",)


def test_another_driver_is_another_machine(tmp_path: Path) -> None:
    found = replace(this_machine(tree(tmp_path, PC)), gpus=(Gpu("G", "1", 1, 1.0),))
    updated = replace(found, gpus=(Gpu("G", "2", 1, 1.0),))
    assert found.digest() != updated.digest()


def test_the_hostname_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "secret-host")
    monkeypatch.setattr("socket.gethostname", lambda: "secret-host")
    assert "secret-host" not in repr(this_machine(tree(tmp_path, PC)))


def test_this_very_machine_answers() -> None:
    found = this_machine()
    assert found.num_cores >= 1
    assert len(found.digest()) == 64


def test_versions_name_what_is_installed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "DISTRIBUTIONS", ("numpy", "no-such-distribution"))
    found = installed_versions()
    assert set(found) == {"python", "numpy"}
    assert all(found.values())
