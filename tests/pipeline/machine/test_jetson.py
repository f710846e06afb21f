"""What a Jetson's files tell, from made-up trees for each JetPack."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.machine.identity import this_machine
from pipeline.machine.jetson import JETPACKS, RELEASES, jetson_here, l4t, num_overcurrent
from tests.pipeline.machine.jetsons import JETSONS, dpkg_status, jetson_files, tree


@pytest.mark.parametrize("jetpack", JETSONS)
def test_each_jetpack(tmp_path: Path, jetpack: str) -> None:
    version, (board, _, soc), packages = JETSONS[jetpack]
    found = jetson_here(tree(tmp_path, jetson_files(jetpack)))
    assert found is not None
    assert (found.board, found.soc, found.l4t, found.jetpack) == (board, soc, version, jetpack)
    assert found.compute_capability == {"tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}[soc]
    assert l4t(tmp_path) == version
    assert found.power_mode == "MAXN"
    assert found.power_modes == ("0 MAXN", "2 MODE_30W")
    assert {clock.name.split()[0] for clock in found.clocks} == {"cpu", "gpu"}, "the video engine's clock is neither"
    assert all(clock.is_fixed() for clock in found.clocks)
    assert found.nvcc == "/usr/local/cuda/bin/nvcc"
    assert found.num_overcurrent == 0
    release = found.release()
    assert release is not None
    for what, version in vars(release).items():
        if what in found.packages:
            assert found.packages[what].startswith(version), f"{what} of the tree against the table of releases"
    assert found.bindings == (f"/usr/lib/python{release.python}/dist-packages/tensorrt",)
    assert found.packages["tensorrt"] == packages[next(n for n in packages if n.startswith("libnvinfer"))].split("-")[0]


def test_the_tables_fit_each_other() -> None:
    for version, jetpack in JETPACKS.items():
        release = next(one for one in RELEASES if version.startswith(one.l4t))
        assert jetpack.startswith(release.jetpack)


def test_another_machine_is_none(tmp_path: Path) -> None:
    assert jetson_here(tmp_path) is None
    assert jetson_here(tree(tmp_path, {"proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0"})) is None


def test_what_is_not_told(tmp_path: Path) -> None:
    found = jetson_here(tree(tmp_path, {"proc/device-tree/compatible": "nvidia,x\0nvidia,tegra299\0"}))
    assert found is not None
    assert (found.l4t, found.jetpack, found.compute_capability, found.power_mode) == ("", "", "", "")
    assert (found.packages, found.bindings, found.clocks, found.num_overcurrent) == ({}, (), (), -1)
    assert found.release() is None


def test_l4t_of_the_package_where_the_release_file_is_missing(tmp_path: Path) -> None:
    files = jetson_files("6.2")
    del files["etc/nv_tegra_release"]
    found = jetson_here(tree(tmp_path, files))
    assert found is not None
    assert (found.l4t, found.jetpack) == ("36.4.3", "6.2")


def test_a_newer_revision_has_its_lines_jetpack(tmp_path: Path) -> None:
    text = "# R36 (release), REVISION: 6.1, GCID: 1\n"
    found = jetson_here(tree(tmp_path, jetson_files("6.2") | {"etc/nv_tegra_release": text}))
    assert found is not None
    assert (found.l4t, found.jetpack) == ("36.6.1", "6")


def test_the_newest_of_several_versions_and_none_that_was_removed(tmp_path: Path) -> None:
    both = {"cuda-cudart-12-6": "12.6.68-1", "cuda-cudart-12-10": "12.10.1-1", "libcudnn9-cuda-12": "1:9.3.0.75-1"}
    found = jetson_here(tree(tmp_path, jetson_files("6.2") | {"var/lib/dpkg/status": dpkg_status(both)}))
    assert found is not None
    assert found.packages == {"cuda": "12.10.1", "cudnn": "9.3.0.75"}


@pytest.mark.parametrize("garbage", ["", "x", "\0\0", "12 MHz too", "nan"])
def test_garbage_in_a_clock_or_a_counter(tmp_path: Path, garbage: str) -> None:
    files = jetson_files("6.2") | {
        "sys/class/devfreq/17000000.gpu/cur_freq": garbage,
        "sys/class/hwmon/hwmon2/oc1_event_cnt": garbage,
        "sys/class/hwmon/hwmon2/oc3_event_cnt": "3",
    }
    found = jetson_here(tree(tmp_path, files))
    assert found is not None
    assert math.isnan(found.clocks[-1].current_mhz) == (garbage != "12 MHz too")
    assert num_overcurrent(tmp_path) == (15 if garbage == "12 MHz too" else 3)


def test_the_machine_of_a_report_has_the_same_power_mode(tmp_path: Path) -> None:
    files = jetson_files("6.2") | {"var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n"}
    assert this_machine(tree(tmp_path, files)).power_mode == "MODE_30W"
