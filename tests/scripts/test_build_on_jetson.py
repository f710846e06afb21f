"""The script that installs and runs a bundle on a Jetson."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engines.signing.envelope import new_key
from pipeline.report.table import report_from_json
from pipeline.signing.statement import sign_file
from tests.engines.python38 import other_python, python38, with_bindings
from tests.pipeline.bundles import FILES, bundle_of, member

if TYPE_CHECKING:
    from tests.conftest import Packed

ROOT = Path(__file__).resolve().parents[2]


SCRIPT, BOARD = ROOT / "scripts" / "build_on_jetson", ROOT / "scripts" / "build_on_board"


def read_for_the_stamp() -> bytes:
    """What an environment is made of: where it changes, it is made again."""
    wanted = ("setup.cfg", "setup.py", "calibration/histogram/histogram.c", "scripts/constraints.txt")
    return b"".join((ROOT / name).read_bytes() for name in wanted)


def on_jetson(
    *arguments: object, cwd: Path | None = None, script: Path = SCRIPT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The script with an interpreter that can run it, unless another is given."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(script), *map(str, arguments)],
        cwd=cwd,
        env=clean | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "usage: "),
        (["b.tar", "reference"], 2, "usage: "),
        (["b.tar", "--backend"], 2, "usage: "),
        (["b.tar", "--allow", "my:metric", "--yes", "all"], 2, "usage: "),
        (["nowhere.tar"], 2, "nowhere.tar: does not exist; give the file that `trtforge pack` wrote"),
    ],
)
def test_the_script_on_a_wrong_command_line(arguments: list[str], status: int, said: str) -> None:
    done = on_jetson(*arguments)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr


def test_the_script_on_a_damaged_bundle(packed_once: Packed, tmp_path: Path) -> None:
    bundle = Path(shutil.copy(packed_once.bundle, tmp_path))
    data = bundle.read_bytes()
    bundle.write_bytes(data[: len(data) // 2])
    done = on_jetson(bundle, "--backend", "reference", VENV=str(tmp_path / "venv"))
    assert done.returncode == 2
    where_cut = r"(unexpected end of data|its file '.+' is missing)"  # Within a file, or between two.
    assert re.search(rf"bundle\.tar: cannot be unpacked: {where_cut}; copy it again", done.stderr)
    at = data.index(b"QuantizeLinear")
    bundle.write_bytes(data[:at] + b"X" + data[at + 1 :])
    done = on_jetson(bundle, "--backend", "reference", VENV=str(tmp_path / "venv"))
    assert done.returncode == 2
    assert "'models/int8.tensorrt/model.onnx' is not what was packed (SHA-256 differs); copy it again" in done.stderr
    assert not (tmp_path / "venv").exists()
    assert not (tmp_path / "bundle").exists(), "nothing is unpacked before all of it is held to its sums"


def test_the_script_passes_the_users_choice_on(tmp_path: Path) -> None:
    """The environment is a made-up one whose `trtforge` says how it was called; all before it is real."""
    bin_folder = tmp_path / "venv/bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "trtforge").write_text('#!/bin/sh\necho "$PWD:$*"\n')
    (bin_folder / "trtforge").chmod(0o755)
    stamp = subprocess.run(["cksum"], input=read_for_the_stamp(), capture_output=True, check=True).stdout
    (bin_folder.parent / "made-for-reference").write_bytes(stamp)
    bundle = bundle_of(tmp_path / "host:b.tar")
    (tmp_path / "selectors.py").write_text("raise SystemExit('the current folder ran')")
    for allowed in ([], ["--allow", "my.metric:f,g:h"]):
        done = on_jetson(bundle.name, *allowed, "--backend", "reference", cwd=tmp_path, VENV=str(tmp_path / "venv"))
        call = " ".join(["run", "plan.toml", "--backend", "reference", *allowed])
        assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'host:b'}:{call}\n"), done.stderr


def test_a_bundle_is_unpacked_only_if_a_trusted_key_signed_it(tmp_path: Path, packed_once: Packed) -> None:
    pytest.importorskip("securesystemslib")
    bundle, key = Path(shutil.copy(packed_once.bundle, tmp_path)), tmp_path / "release.key"
    public = new_key(key)
    options = ["--backend", "reference", "--trusted", public.name, "--", "show", "--store", "nowhere"]

    def tried(*trusting: str) -> subprocess.CompletedProcess[str]:
        return on_jetson(bundle.name, *(trusting or options), cwd=tmp_path, READY=sys.executable)

    done = tried("--trusted", "no.pub")
    assert (done.returncode, "no.pub: does not exist" in done.stderr) == (2, True), done.stderr
    done = tried()
    assert (done.returncode, "bundle.tar: is not signed (bundle.tar.dsse.json is not there)" in done.stderr) == (
        2,
        True,
    )
    sign_file(bundle, key)
    before = bundle.read_bytes()
    bundle.write_bytes(before + b"\0" * 512)
    done = tried()
    assert (done.returncode, "is not what release.pub signed (SHA-256 differs)" in done.stderr) == (5, True), (
        done.stderr
    )
    assert not (tmp_path / "bundle").exists(), "nothing is unpacked of a bundle that is another"
    bundle.write_bytes(before)
    done = tried()
    assert "bundle.tar: signed by release.pub" in done.stdout, done.stderr
    assert (tmp_path / "bundle/plan.toml").is_file()


@pytest.mark.parametrize("asks", ["", "bundle", "environment"])
def test_what_signs_is_installed_where_signatures_are_asked_for(tmp_path: Path, asks: str) -> None:
    """The environment is a made-up one whose interpreter says how it was called, and has nothing installed."""
    bin_folder = tmp_path / "venv/bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "trtforge").write_text("#!/bin/sh\n")
    (bin_folder / "python").write_text('#!/bin/sh\necho "python $*" >&2\ncase "$*" in *import*) exit 1;; esac\n')
    for name in ("trtforge", "python"):
        (bin_folder / name).chmod(0o755)
    stamp = subprocess.run(["cksum"], input=read_for_the_stamp(), capture_output=True, check=True).stdout
    (bin_folder.parent / "made-for-reference").write_bytes(stamp)
    key = {"trusted/1.pub": b"a public key"} if asks == "bundle" else {}
    members = [member(f"top/{name}", content) for name, content in key.items()]
    bundle = bundle_of(tmp_path / "b.tar", *members, listed=FILES | key)
    key_file = "release.key" if asks == "environment" else ""
    venv = str(tmp_path / "venv")
    done = on_jetson(bundle, "--backend", "reference", VENV=venv, TRTFORGE_SIGNING_KEY=key_file, TRTFORGE_TRUSTED="")
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("securesystemslib[crypto]\n") == bool(asks), done.stderr


def test_the_script_for_a_board_is_the_same_with_litert(tmp_path: Path) -> None:
    """The environment is a made-up one whose `trtforge` says how it was called; then one whose pip finds no wheel."""
    bin_folder = tmp_path / "venv/bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "trtforge").write_text('#!/bin/sh\necho "$*"\n')
    (bin_folder / "trtforge").chmod(0o755)
    stamp = subprocess.run(["cksum"], input=read_for_the_stamp(), capture_output=True, check=True).stdout
    (bin_folder.parent / "made-for-litert").write_bytes(stamp)
    bundle = bundle_of(tmp_path / "b.tar")
    done = on_jetson(bundle, "--allow", "m:f", script=BOARD, VENV=str(tmp_path / "venv"))
    assert (done.returncode, done.stdout) == (0, "run plan.toml --backend litert --allow m:f\n"), done.stderr
    (bin_folder.parent / "made-for-litert").unlink()
    (bin_folder / "python").write_text(
        "#!/bin/sh\necho 'ERROR: No matching distribution found for ai-edge-litert' >&2; exit 1\n"
    )
    (bin_folder / "python").chmod(0o755)
    done = on_jetson(bundle, script=BOARD, VENV=str(tmp_path / "venv"))
    assert done.returncode == 3
    assert "build_on_board: litert: ai-edge-litert cannot be installed for Python 3." in done.stderr
    assert (
        "it has wheels for 64-bit Linux (x86_64, aarch64) and Python 3.10 to 3.13: take such a system, " in done.stderr
    )
    assert on_jetson(script=BOARD).returncode == 2


def test_pycuda_that_cannot_be_compiled_is_one_sentence(tmp_path: Path) -> None:
    """The environment is a made-up one whose pip compiles nothing; nothing is noted as installed then."""
    bin_folder = tmp_path / "venv/bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").write_text("#!/bin/sh\ncase \"$*\" in *pycuda*) echo 'ERROR: no nvcc' >&2; exit 1;; esac\n")
    (bin_folder / "python").chmod(0o755)
    done = on_jetson(bundle_of(tmp_path / "b.tar"), VENV=str(tmp_path / "venv"))
    assert done.returncode == 3, done.stderr
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith(f"build_on_jetson: pycuda: cannot be installed into {tmp_path / 'venv'}, see what pip ")
    assert "g++, python3-dev and CUDA's nvcc, which is looked for in /usr/local/cuda/bin and on PATH" in sentence
    assert not (tmp_path / "venv/made-for-tensorrt").exists()


def test_the_script_with_too_old_a_python_or_none(tmp_path: Path) -> None:
    (tmp_path / "bundle.tar").write_bytes(b"")
    done = on_jetson(tmp_path / "bundle.tar", PYTHON=other_python("3.6"))
    assert done.returncode == 3
    assert "is Python 3.6, 3.8 is the oldest that works, with JetPack 5.1: flash that or a newer one, " in done.stderr
    done = on_jetson(tmp_path / "bundle.tar", PYTHON=str(tmp_path / "none"))
    assert done.returncode == 3
    assert done.stderr.endswith("none: is not a working Python; name one with PYTHON=\n")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_the_whole_script_with_the_python_of_jetpack_5(packed_once: Packed, tmp_path: Path) -> None:
    """The program gets a newer Python, that of PATH; TensorRT is called in the real 3.8, until it asks for a GPU."""
    bundle = Path(shutil.copy(packed_once.bundle, tmp_path))
    python, there, venv = other_python("3.8"), with_bindings(), tmp_path / "venv"
    settings: dict[str, Any] = {
        "PYTHON": python,
        "VENV": str(venv),
        "PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}",
    }
    done = on_jetson(bundle, "--backend", "reference", **settings)
    assert done.returncode == 0, done.stderr
    assert "int8@reference" in done.stdout
    assert not (venv / "tensorrt").exists()
    # What is installed for 3.8 is this one with the bindings; pycuda, which is compiled for a GPU, is not in it.
    (venv / "tensorrt/bin").mkdir(parents=True)
    paths = " ".join(f"{name}={there[name].partition(':')[0]}" for name in ("PYTHONPATH", "LD_LIBRARY_PATH"))
    (venv / "tensorrt/bin/python").write_text(f'#!/bin/sh\n{paths} exec {python38()} "$@"\n')
    (venv / "tensorrt/bin/python").chmod(0o755)
    wanted = (ROOT / "scripts/constraints-3.8.txt").read_bytes()
    stamp = subprocess.run(["cksum"], input=wanted, capture_output=True, check=True).stdout
    (venv / "tensorrt/made-for-tensorrt").write_bytes(stamp)
    shutil.copy(venv / "made-for-reference", venv / "made-for-tensorrt")
    done = on_jetson(bundle, **settings)
    assert done.returncode == 3, done.stderr
    assert f"tensorrt: is called in a process of {venv}/tensorrt/bin/python (3.8." in done.stdout
    assert "tensorrt: no GPU: libcuda.so.1 is not there; run on a machine with an NVIDIA driver" in done.stderr
    assert "installing" not in done.stderr


@pytest.mark.slow
def test_the_whole_script_in_a_fresh_environment(packed_once: Packed, tmp_path: Path) -> None:
    bundle = Path(shutil.copy(packed_once.bundle, tmp_path))
    venv = tmp_path / "venv"
    done = on_jetson(bundle, "--backend", "reference", VENV=str(venv))
    assert done.returncode == 0, done.stderr
    assert "int8@reference" in done.stdout
    record = report_from_json(tmp_path / "bundle" / "trtforge-report" / "report.json")
    assert [variant.failures for variant in record.variants] == [(), ()]
    assert not {"tensorflow", "onnxruntime", "tf2onnx"} & set(record.versions), "the core is all that was installed"
    again = on_jetson(bundle, "--backend", "reference", VENV=str(venv))
    assert again.returncode == 0, again.stderr
    assert "installing" not in again.stderr
    assert "served" in again.stderr
