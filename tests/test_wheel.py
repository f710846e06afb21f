"""Wheel and sdist have all that the program needs: built, installed into an empty environment, a plan run there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

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


@dataclass(frozen=True)
class Clean:
    """An environment with what is installed from the sdist, and nothing that it does not declare."""

    folder: Path
    sdist: frozenset[str]
    """Paths in it, below its folder."""
    wheel: frozenset[str]

    def call(self, program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A program of the environment, without this process's paths."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.folder / "bin" / program), *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def left_out(folder: str, names: list[str]) -> set[str]:
    """What no checkout has when it is new."""
    made = {name for name in names if name.startswith(".") or name in ("__pycache__", "build") or name.endswith(".so")}
    return made | ({"data"} & {*names} if Path(folder).name == "digits" else set())


def declared(extras: frozenset[str]) -> set[Distribution]:
    """The distributions that the sdist's own metadata needs with these extras, and those that they need."""
    wanted = [Requirement(line) for line in requirements_of(extras)]
    dists: dict[str, Distribution] = {}
    while wanted:
        requirement = wanted.pop()
        dist = distribution(requirement.name)
        if dist.metadata["Name"] in dists:
            continue
        dists[dist.metadata["Name"]] = dist
        inner = [Requirement(line) for line in dist.requires or ()]
        marks = [{"extra": extra} for extra in ("", *requirement.extras)]
        wanted += [each for each in inner if not each.marker or any(each.marker.evaluate(mark) for mark in marks)]
    return set(dists.values())


def requirements_of(extras: frozenset[str]) -> list[str]:
    """Lines of setup.cfg."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][name] for name in extras)]
    lines = [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]
    return [line for line in lines if (marker := Requirement(line).marker) is None or marker.evaluate()]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """Sdist, wheel of it, installed by pip into an empty environment; what it declares is linked from this one."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    work = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, work / "checkout", ignore=left_out)
    build = [sys.executable, "-c", "from setuptools import build_meta as b; import sys; b.build_sdist(sys.argv[1])"]
    subprocess.run([*build, str(work)], cwd=work / "checkout", capture_output=True, text=True, check=True)
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        paths = frozenset(name.partition("/")[2] for name in file.getnames())
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian's 3.11.2 has none.
        file.extractall(work / "unpacked", **safely)
    (source,) = (work / "unpacked").iterdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(work)], cwd=source, capture_output=True, text=True, check=False
    )
    if "invalid command 'bdist_wheel'" in done.stderr:
        pytest.skip("this setuptools builds no wheels by itself")
    assert done.returncode == 0, done.stderr
    (wheel,) = work.glob("*.whl")
    environment = work / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    for dist in declared(frozenset({"onnxruntime", "report"})):
        for top in {file.parts[0] for file in dist.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(dist.locate_file(top))))
    with zipfile.ZipFile(wheel) as archived:
        return Clean(environment, paths, frozenset(archived.namelist()))


def test_the_sdist_has_what_links_lead_to_and_no_results(clean: Clean) -> None:
    assert {"setup.cfg", "CHANGELOG.md", "docs/advise.md", "examples/digits/plan.toml"} <= clean.sdist
    assert {"scripts/constraints.txt", "calibration/histogram/histogram.c", "tests/conftest.py"} <= clean.sdist
    made = ("examples/digits/data", "build")
    assert [path for path in clean.sdist if path.startswith(made) or path.endswith((".so", ".pyc"))] == []


def test_the_histogram_is_compiled_where_there_is_a_compiler(clean: Clean) -> None:
    compiled = [path for path in clean.wheel if path.startswith("calibration/histogram/_histogram.") and ".so" in path]
    assert len(compiled) == bool(shutil.which("cc") or shutil.which("gcc"))


def test_what_is_installed_is_alone(clean: Clean, tmp_path: Path) -> None:
    done = clean.call(
        "python", "-c", "import trtforge, pipeline; print(trtforge.__file__, pipeline.__file__)", cwd=tmp_path
    )
    assert done.stderr == ""
    assert all(Path(path).is_relative_to(clean.folder) for path in done.stdout.split())
    assert clean.call("python", "-c", "import tensorflow", cwd=tmp_path).returncode == 1
    doctor = clean.call("trtforge", "doctor", cwd=tmp_path)
    assert (doctor.returncode, doctor.stderr) == (0, "")
    extras = {line.split()[1].rstrip(":") for line in doctor.stdout.splitlines() if line.startswith("extra ")}
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert extras == {*config["options.extras_require"]}


def test_a_plan_runs_in_it(clean: Clean, plan: Path) -> None:
    text = plan.read_text().replace("html = false", "html = true")
    plan.write_text(text + "[validate.int8]\nmax_metric_drop = 1.0\nmin_cosine = 0.0\n")
    done = clean.call("trtforge", "run", "plan.toml", cwd=plan.parent)
    assert done.returncode == 0, done.stderr
    assert (plan.parent / "trtforge-report" / "report.html").is_file()
