"""What `trtforge doctor` finds on Jetsons in good order and in bad, from made-up trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines.ort.providers import ProviderLinks, wheels
from pipeline.command import diagnosis
from pipeline.command.diagnosis import (
    Diagnosis,
    Interpreter,
    Notice,
    diagnose,
    interpreter_here,
    jetson_findings,
    memory_findings,
)
from pipeline.command.verbs.engines import doctor
from pipeline.machine.jetson import jetson_here
from pipeline.machine.memory import Memory, build_need_mib, memory_here
from pipeline.plan import read_plan
from tests.engines.python38 import python38, with_bindings
from tests.pipeline.machine.jetsons import JETSONS, NANO, dpkg_status, jetson_files, tree

if TYPE_CHECKING:
    from tests.conftest import Command

ROOMY = Memory(total_mib=7620, available_mib=6000, swap_mib=8192, zram_mib=635, swap_used_mib=1, disk_free_mib=50000)


def python_of(jetpack: str, pycuda: str = "2025.1.2") -> Interpreter:
    """The distribution's Python in an environment as `doctor` recommends it."""
    packages = JETSONS[jetpack][2]
    python = ".".join(packages["python3"].split(".")[:2])
    versions = {"pycuda": pycuda} if pycuda else {}
    location = f"/usr/lib/python{python}/dist-packages/tensorrt/__init__.py"
    if jetpack < "6":  # As scripts/build_on_jetson makes it.
        return Interpreter("3.12", "/v/bin/python", location, versions, "/v/tensorrt/bin/python (3.8.10)")
    return Interpreter(python, "/home/u/.venv/bin/python", location, versions)


def found_in(root: Path, files: dict[str, str], interpreter: Interpreter, needed: str = "tensorrt") -> list[Notice]:
    jetson = jetson_here(tree(root, files))
    assert jetson is not None
    return list(jetson_findings(jetson, interpreter, needed.split()))


def only(found: list[Notice], subject: str) -> Notice:
    """The one finding about a subject."""
    (one,) = [finding for finding in found if finding.subject == subject]
    return one


@pytest.mark.parametrize("jetpack", JETSONS)
def test_a_jetson_in_good_order_has_nothing_bad(tmp_path: Path, jetpack: str) -> None:
    found = found_in(tmp_path, jetson_files(jetpack), python_of(jetpack))
    assert {finding.level for finding in found} <= {"note"}
    assert [finding.subject for finding in found] == (["dla"] if jetpack == "7.2" else [])


@pytest.mark.parametrize("jetpack", [name for name in JETSONS if name < "6"])
def test_jetpack_5_says_what_its_python_costs(tmp_path: Path, jetpack: str) -> None:
    interpreter = Interpreter("3.10", "/opt/python3.10/bin/python", "", {"pycuda": "2026.1"})
    found = found_in(tmp_path, jetson_files(jetpack), interpreter)
    one = only(found, "python")
    assert one.level == "bad"
    assert one.line() == (
        f"bad: python: JetPack {jetpack} makes TensorRT for its own Python 3.8 alone, and no such one is asked for it; "
        "scripts/build_on_jetson makes what it takes; by hand: TRTFORGE_TENSORRT_PYTHON=PATH of a 3.8 with what "
        "scripts/constraints-3.8.txt lists"
    )


def test_jetpack_5_without_pycuda(tmp_path: Path) -> None:
    found = found_in(tmp_path, jetson_files("5.1.2"), python_of("5.1.2", pycuda=""))
    assert only(found, "pycuda").do == (
        "PATH=/usr/local/cuda/bin:$PATH /v/tensorrt/bin/python -m pip install pycuda==2025.1.2"
    )


def test_the_interpreter_that_has_tensorrt_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in with_bindings().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRTFORGE_TENSORRT_PYTHON", str(python38()))
    found = interpreter_here()
    assert found.tensorrt.endswith("bindings/tensorrt/__init__.py")
    assert found.tensorrt_python.startswith(f"{python38()} (3.8.")
    monkeypatch.setenv("TRTFORGE_TENSORRT_PYTHON", "/nowhere/python")
    assert interpreter_here().tensorrt == ""


def test_jetpack_5_with_bindings_built_for_310_works(tmp_path: Path) -> None:
    own = Interpreter(
        "3.10", "/v/bin/python", "/v/lib/python3.10/site-packages/tensorrt/__init__.py",
        {"tensorrt": "8.5.2.2", "pycuda": "2026.1"},
    )  # fmt: skip
    found = found_in(tmp_path, jetson_files("5.1.2"), own)
    assert only(found, "tensorrt").level == "note"
    assert [finding for finding in found if finding.level == "bad"] == []


@pytest.mark.parametrize(
    ("l4t", "said"),
    [
        ("# R35 (release), REVISION: 1.0,", "JetPack 5.0.2 (L4T 35.1.0) has TensorRT 8.4.1, 8.5 is the oldest that"),
        ("# R34 (release), REVISION: 1.1,", "JetPack 5.0 preview (L4T 34.1.1) has TensorRT 8.4.1"),
    ],
)
def test_too_old_a_jetpack(tmp_path: Path, l4t: str, said: str) -> None:
    status = dpkg_status({"libnvinfer8": "8.4.1-1+cuda11.4", "python3-libnvinfer": "8.4.1-1+cuda11.4"})
    files = jetson_files("5.1") | {"etc/nv_tegra_release": l4t, "var/lib/dpkg/status": status}
    one = only(found_in(tmp_path, files, python_of("5.1")), "jetpack")
    assert one.level == "bad"
    assert one.sentence.startswith(said)
    assert "flash JetPack 5.1.6" in one.do


def test_a_nano_cannot_be_served(tmp_path: Path) -> None:
    board, part, soc = NANO
    files = jetson_files("5.1") | {
        "etc/nv_tegra_release": "# R32 (release), REVISION: 7.6, GCID: 1\n",
        "proc/device-tree/model": board,
        "proc/device-tree/compatible": f"{part}\0nvidia,{soc}\0",
        "var/lib/dpkg/status": dpkg_status({"libnvinfer8": "8.2.1-1+cuda10.2"}),
    }
    one = only(found_in(tmp_path, files, python_of("5.1")), "jetpack")
    assert one.do == "there is no newer JetPack for this module, so it is not supported"


def test_an_l4t_that_nobody_knows_yet(tmp_path: Path) -> None:
    files = jetson_files("7.2") | {"etc/nv_tegra_release": "# R41 (release), REVISION: 1.0, GCID: 1\n"}
    one = only(found_in(tmp_path, files, python_of("7.2")), "jetpack")
    assert one.line() == "warning: jetpack: L4T 41.1.0 is not in this program's table, so its versions are not checked"


def test_no_tensorrt(tmp_path: Path) -> None:
    files = jetson_files("6.2") | {"var/lib/dpkg/status": dpkg_status({"python3": "3.10.6-1~22.04"})}
    del files["usr/lib/python3.10/dist-packages/tensorrt/__init__.py"]
    one = only(found_in(tmp_path, files, Interpreter("3.10", "p", "", {"pycuda": "2026.1"})), "tensorrt")
    assert one.line() == "bad: tensorrt: TensorRT is not installed; sudo apt install python3-libnvinfer"


def test_a_python_that_does_not_see_apts_tensorrt(tmp_path: Path) -> None:
    interpreter = Interpreter("3.12", "/home/u/conda/bin/python", "", {"pycuda": "2026.1"})
    one = only(found_in(tmp_path, jetson_files("6.2"), interpreter), "python")
    assert one.level == "bad"
    assert one.sentence == (
        "/usr/lib/python3.10/dist-packages/tensorrt is Python 3.10's; /home/u/conda/bin/python (3.12) does not see it"
    )
    assert one.do.startswith("/usr/bin/python3 -m venv --system-site-packages .venv")


@pytest.mark.parametrize(("jetpack", "level"), [("6.2", "bad"), ("7.1", "warning")])
def test_pips_tensorrt_hides_jetpacks(tmp_path: Path, jetpack: str, level: str) -> None:
    pip = Interpreter(
        "3.10", "p", "/v/lib/python3.10/site-packages/tensorrt/__init__.py",
        {"tensorrt": "10.9.0.34", "pycuda": "2026.1"},
    )  # fmt: skip
    one = only(found_in(tmp_path, jetson_files(jetpack), pip), "tensorrt")
    assert one.level == level
    assert "is not JetPack's: pip's wheels for aarch64 are made for servers (SBSA)" in one.sentence


def test_bindings_of_another_version_than_the_library(tmp_path: Path) -> None:
    packages = JETSONS["6.2"][2] | {"python3-libnvinfer": "10.7.0.23-1+cuda12.6"}
    files = jetson_files("6.2") | {"var/lib/dpkg/status": dpkg_status(packages)}
    one = only(found_in(tmp_path, files, python_of("6.2")), "tensorrt")
    assert one.level == "bad"
    assert one.sentence.startswith("libnvinfer is 10.3.0.30, python3-libnvinfer is 10.7.0.23")


def test_a_tensorrt_that_jetpack_did_not_bring(tmp_path: Path) -> None:
    packages = JETSONS["6.2"][2] | dict.fromkeys(("libnvinfer10", "python3-libnvinfer"), "10.7.0.23-1+cuda12.6")
    files = jetson_files("6.2") | {"var/lib/dpkg/status": dpkg_status(packages)}
    one = only(found_in(tmp_path, files, python_of("6.2")), "tensorrt")
    assert one.level == "warning"
    assert one.sentence.startswith("TensorRT 10.7.0.23 where L4T 36.4.3 brings 10.3.0")


def test_no_pycuda_and_nothing_to_compile_it_with(tmp_path: Path) -> None:
    files = jetson_files("6.2")
    del files["usr/local/cuda/bin/nvcc"]
    found = found_in(tmp_path, files, python_of("6.2", pycuda=""))
    assert only(found, "cuda").do == (
        "sudo apt install cuda-nvcc-12-6 cuda-cudart-dev-12-6 libcurand-dev-12-6 python3-dev g++"
    )
    assert only(found, "pycuda").line() == (
        "bad: pycuda: is not installed; PATH=/usr/local/cuda/bin:$PATH .venv/bin/pip install 'pycuda>=2025.1.2'"
    )


def test_too_old_a_pycuda_for_cuda_13(tmp_path: Path) -> None:
    assert only(found_in(tmp_path, jetson_files("7.0"), python_of("7.0", "2024.1.2")), "pycuda").level == "bad"
    assert found_in(tmp_path / "6", jetson_files("6.2"), python_of("6.2", "2024.1.2")) == []


def test_packages_of_two_releases(tmp_path: Path) -> None:
    mixed = {"nvidia-l4t-core": "36.4.4-2025", "nvidia-l4t-cuda": "36.4.4-2025", "nvidia-l4t-gstreamer": "36.4.7-2025"}
    files = jetson_files("6.2") | {"var/lib/dpkg/status": dpkg_status(JETSONS["6.2"][2] | mixed)}
    one = only(found_in(tmp_path, files, python_of("6.2")), "l4t")
    assert one.level == "warning"
    assert one.sentence == "packages of L4T 36.4.4 and 36.4.7 are mixed (2 older, such as nvidia-l4t-core)"


def test_power_clocks_and_throttling(tmp_path: Path) -> None:
    files = jetson_files("6.2") | {
        "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
        "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
        "sys/class/hwmon/hwmon2/oc3_event_cnt": "4\n",
    }
    found = found_in(tmp_path, files, python_of("6.2"))
    power = [finding.line() for finding in found if finding.subject == "power"]
    assert power[0].startswith("warning: power: the hardware has throttled 4 times since boot")
    assert power[1].startswith("note: power: mode MODE_30W of 0 MAXN, 2 MODE_30W: results hold for it only")
    assert only(found, "clocks").sentence == (
        "gpu 17000000.gpu moves from 306 to 625 MHz: latency depends on the preceding load"
    )


@pytest.mark.parametrize(
    ("jetpack", "version", "level", "words"),
    [
        (
            "7.2",
            "11.4.1.7-1+cuda13.2",
            "note",
            "TensorRT 11.4.1.7 needs JetPack 7.2.2 or later, and has INT8",
        ),
        (
            "7.2",
            "11.3.0.1-1+cuda13.2",
            "bad",
            "TensorRT 11.3.0.1 supports no Jetson; of 11 the first",
        ),
        ("7.1", "11.4.1.7-1+cuda13.2", "bad", "TensorRT 11.4.1.7 supports JetPack 7.2.2 and later, this is 7.1"),
    ],
)
def test_tensorrt_11_is_for_jetpack_7_2_2_alone(
    tmp_path: Path, jetpack: str, version: str, level: str, words: str
) -> None:
    files = jetson_files(jetpack)
    files["var/lib/dpkg/status"] = files["var/lib/dpkg/status"].replace(JETSONS[jetpack][2]["libnvinfer10"], version)
    found = [one for one in found_in(tmp_path, files, python_of(jetpack)) if one.sentence.startswith(words)]
    assert [one.level for one in found] == [level]


def test_tensorrt_11_of_orin_is_for_the_agx_alone(tmp_path: Path) -> None:
    files = jetson_files("7.2")
    status = files["var/lib/dpkg/status"].replace("10.16.2.10-1+cuda13.2", "11.4.1.7-1+cuda13.2")
    nano = {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0", "var/lib/dpkg/status": status}
    found = found_in(tmp_path, files | nano, python_of("7.2"))
    assert "TensorRT 11.4.1.7 supports of Orin the AGX alone, this is NVIDIA Jetson Orin Nano Developer Kit" in [
        one.sentence for one in found
    ]


def test_rtx_is_for_no_jetson(tmp_path: Path) -> None:
    one = only(found_in(tmp_path, jetson_files("6.2"), python_of("6.2"), "tensorrt_rtx"), "backends")
    assert one.line().startswith("bad: backends: TensorRT for RTX does not support compute capability 8.7")


def test_memory_is_read(tmp_path: Path) -> None:
    found = memory_here(tree(tmp_path, jetson_files("6.2")), tmp_path / "not" / "yet" / "there")
    assert (found.total_mib, found.available_mib) == (7620, 6000)
    assert (found.swap_mib, found.zram_mib, found.swap_used_mib) == (8191, 635, 1)
    assert found.disk_free_mib > 0
    (tmp_path / "proc/swaps").write_text("Filename Type Size\n/dev/zram0 partition\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: what\n")
    garbage = memory_here(tmp_path, tmp_path)
    assert (garbage.total_mib, garbage.available_mib, garbage.swap_mib, garbage.zram_mib) == (0, 0, 0, 0)


def test_a_build_that_does_not_fit(tmp_path: Path) -> None:
    np.zeros(3 << 20, dtype=np.uint8).tofile(tmp_path / "weights.bin")
    need_mib = build_need_mib(tmp_path / "weights.bin", 1024)
    assert need_mib == 1500 + 1024 + 4 * 3
    assert build_need_mib(tmp_path, 1024) == need_mib, "a SavedModel is a folder"
    assert build_need_mib(tmp_path / "missing.onnx", 1024) == 1500 + 1024
    assert list(memory_findings(ROOMY, need_mib, True)) == []
    small = Memory(3800, 900, 0, 1900, 0, 500)
    found = list(memory_findings(small, need_mib, True))
    assert [finding.subject for finding in found] == ["memory", "swap", "disk"]
    assert found[0].sentence == (
        "900 MiB are available, a build of this model takes about 2536 MiB (1900 MiB of swap help the CPU's part only)"
    )


@pytest.fixture
def on_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tree(tmp_path / "jetson", jetson_files("6.2"))
    monkeypatch.setattr(doctor, "ROOT", root)
    return root


def test_the_command_on_a_jetson_where_tensorrt_is_not_seen(command: Command, on_a_jetson: Path) -> None:
    said = command("doctor")
    assert said.status == 3
    assert "jetson: L4T 36.4.3, JetPack 6.2; cuda 12.6.68, cudnn 9.3.0.75, tensorrt 10.3.0.30" in said.out
    assert "memory: 6000 of 7620 MiB available, 8191 MiB swap on disk, 635 MiB in zram" in said.out
    assert "bad: pycuda: is not installed" in said.out
    assert said.err.startswith("trtforge: tensorrt: cannot work here: ")


def test_the_command_checks_what_a_plan_needs(command: Command, plan: Path, on_a_jetson: Path) -> None:
    assert command("doctor", plan).status == 0, "the plan asks for ONNX Runtime alone, and that is here"
    plan.write_text(plan.read_text().replace("[variants]", '[variants]\nbackends = ["onnxruntime", "tensorrt"]'))
    said = command("doctor", plan)
    assert said.status == 3
    assert "build: takes about 2524 MiB with TensorRT" in said.out
    assert command("doctor", "nowhere.toml").status == 2


def test_a_plan_for_a_missing_backend_fails_anywhere(command: Command, plan: Path) -> None:
    if diagnose(Path("/"), None, Path()).jetson is None:
        assert command("doctor").status == 0
    plan.write_text(plan.read_text().replace("[variants]", '[variants]\nbackends = ["tensorrt"]'))
    if read_plan(plan) and not tensorrt_works():
        said = command("doctor", plan)
        assert said.status == 3
        assert "trtforge: tensorrt: cannot work here: tensorrt: " in said.err


def tensorrt_works() -> bool:
    from engines.backends import tensorrt

    return not tensorrt.why_not_run()


def test_which_onnxruntime_is_there_and_what_it_links(
    command: Command, on_a_jetson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ("onnxruntime 1.32.0", "onnxruntime-gpu 1.31.1")
    links = ProviderLinks("CUDAExecutionProvider", ("libcudart.so.13", "libcudnn.so.9"), ("libcudnn.so.9",))
    assert f"onnxruntime: {' and '.join(wheels())}" in command("doctor").out
    monkeypatch.setattr(diagnosis, "wheels", lambda: both)
    monkeypatch.setattr(diagnosis, "provider_links", lambda: (links,))
    lines = command("doctor").out.splitlines()
    assert "onnxruntime: onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1" in lines
    assert (
        "onnxruntime: CUDAExecutionProvider links libcudart.so.13, libcudnn.so.9 (not found here: libcudnn.so.9)"
        in lines
    )
    assert (
        "warning: onnxruntime: onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are installed into one folder, and the "
        "later one overwrote the other; pip uninstall onnxruntime onnxruntime-gpu, install one" in lines
    )


def test_json(command: Command, on_a_jetson: Path) -> None:
    (on_a_jetson / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("broken")
    said = command("doctor", "--json")
    found = json.loads(said.out)
    assert said.status == 3
    assert (found["schema_version"], found["works"]) == (1, False)
    assert set(found) == {*Diagnosis.__annotations__, "schema_version", "works", "why"}
    assert found["jetson"]["clocks"][-1]["current_mhz"] is None
    assert found["jetson"]["power_mode"] == "MAXN"
    assert {finding["level"] for finding in found["findings"]} <= {"bad", "warning", "note"}
    assert [state["name"] for state in found["backends"]][:2] == ["litert", "onnxruntime"]


def test_a_plan_of_pytorch_without_its_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = 'calibration = { path = "c.npz" }\nevaluation = { path = "e.npz" }'
    (tmp_path / "plan.toml").write_text(f'[model]\nsource = "my_model:network"\n[data]\n{data}\n')
    plan = read_plan(tmp_path / "plan.toml")
    assert [each for each in diagnose(tmp_path, plan, tmp_path).findings if each.subject == "source"] == []
    monkeypatch.setattr("engines.torch_graph.library.EXPORTER", "no_such_package")
    notice = only(list(diagnose(tmp_path, plan, tmp_path).findings), "source")
    assert notice.line() == (
        "bad: source: no_such_package: not installed, which exports PyTorch networks; pip install 'trtforge[torch]'"
    )
