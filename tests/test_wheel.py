"""The wheel has all that the program needs: built, unpacked beside nothing of the checkout, and a plan run from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("calibration", "engines", "pipeline")
DELIVERED = ROOT / "pipeline" / "delivery" / "cpp_program"
BUILD = "from setuptools import build_meta; import sys; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel holds. The C file is optional, and is left out here."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    kept = shutil.ignore_patterns("__pycache__", "*.so", "*.c")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=kept)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "trtforge.py"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "scripts", source / "scripts", ignore=kept)
    (source / "setup.py").write_text("from setuptools import setup\nsetup()\n")
    command = [sys.executable, "-c", BUILD, str(work)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if "invalid command 'bdist_wheel'" in done.stderr:
        pytest.skip("this setuptools builds no wheels by itself")
    assert done.returncode == 0, done.stderr
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "unpacked")
    return work / "unpacked"


def test_it_has_every_file(unpacked: Path) -> None:
    expected = {
        file.relative_to(ROOT)
        for name in PACKAGES
        for file in (ROOT / name).rglob("*")
        if (
            file.suffix in (".py", ".j2", ".css", ".typed", ".pyi")
            or (file.is_file() and file.is_relative_to(DELIVERED))
        )
        and "__pycache__" not in file.parts
    }
    assert {file for file in expected if not (unpacked / file).is_file()} == set()
    assert (unpacked / "trtforge.py").is_file()


def test_it_has_what_is_sent_to_a_device(unpacked: Path) -> None:
    (shared,) = unpacked.glob("trtforge-*.data/data/share/trtforge")
    scripts = {file.name for file in (ROOT / "scripts").iterdir() if file.is_file()}
    assert {file.name for file in (shared / "scripts").iterdir()} == scripts
    assert {"README.md", "pyproject.toml", "setup.cfg", "setup.py"} <= {file.name for file in shared.iterdir()}


def test_a_plan_runs_from_it(unpacked: Path, plan: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    text = plan.read_text().replace("html = false", "html = true")
    plan.write_text(text + "[validate.int8]\nmax_metric_drop = 1.0\nmin_cosine = 0.0\n")
    program = (
        "import pipeline, sys; print(pipeline.__file__, file=sys.stderr); from pipeline.command import cli; cli.main()"
    )
    command = [sys.executable, "-c", program, "run", "plan.toml"]
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    done = subprocess.run(command, cwd=plan.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(unpacked))
    assert (plan.parent / "trtforge-report" / "report.html").is_file()
