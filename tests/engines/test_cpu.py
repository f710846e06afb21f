"""What the system says of the CPU: its name and the flags that matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines import cpu

X86 = """processor : 0
model name : AMD EPYC 7B13
flags : fpu sse2 avx2 fma popcnt avx512_vnni
processor : 1
model name : another
"""


ARM = """processor : 0
Features : fp asimd asimddp crc32
Model : NVIDIA Jetson Orin Nano
"""


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (X86, "AMD EPYC 7B13", {"avx2", "fma", "avx512_vnni"}),
        (ARM, "NVIDIA Jetson Orin Nano", {"asimd", "asimddp"}),
    ],
)
def test_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, name: str, flags: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu.cpu_name() == name
    assert cpu.cpu_flags() == flags
    assert cpu.cpu_flags() & cpu.DOT_PRODUCT


def test_cpu_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    assert cpu.cpu_name()
    assert cpu.cpu_flags() == frozenset()
