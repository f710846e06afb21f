"""The documents are executed: the plan's page names every key, and the README's commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.data.source import DataSource
from pipeline.plan import Plan, tomllib

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")


def sections(page: str) -> dict[str, dict[str, str]]:
    """Table of the plan -> key -> default, as the page has them."""
    found: dict[str, dict[str, str]] = {}
    names: list[str] = []
    for line in page.splitlines():
        if line.startswith("##"):
            names = re.findall(r"\[([\w.]+)\]", line)
            found |= {name: {} for name in names}
        elif row := re.match(r"\| `(\w+)` \| (.*?) \| ", line):
            for name in names:
                found[name][row[1]] = row[2]
    return found


def tables(kind: type[Any], prefix: str) -> Iterator[tuple[str, dict[str, Field[Any]]]]:
    """Every table that a plan may have, and its keys."""
    own = {one.name: one for one in fields(kind) if one.metadata.get("key", True)}
    for mapping in [one for one in own.values() if "keys" in one.metadata]:
        del own[mapping.name]
        tolerances = mapping.metadata["keys"]()
        own |= dict.fromkeys(tolerances, mapping)
        for name, record in tolerances.items():
            yield f"{prefix}.{name}", {one.name: one for one in fields(record)}
    if prefix:
        yield prefix, own
    for name, one in own.items():
        if str(one.type).startswith("DataSource"):
            yield f"{prefix}.{name}", {f.name: f for f in fields(DataSource)}
        elif is_dataclass(one.default) or is_dataclass(one.default_factory):
            inner = type(one.default) if is_dataclass(one.default) else one.default_factory
            yield from tables(inner, f"{prefix}.{name}".lstrip("."))
        elif kind is Plan:
            from pipeline import plan

            yield from tables(getattr(plan, str(one.type)), name)


def test_the_page_has_every_key_of_the_plan_and_no_other() -> None:
    page = sections(PAGE)
    plan = {name: set(keys) for name, keys in tables(Plan, "")}
    assert {name: set(keys) for name, keys in page.items()} == plan


def test_the_page_has_the_defaults() -> None:
    page = sections(PAGE)
    num_checked = 0
    for name, keys in tables(Plan, ""):
        for key, one in keys.items():
            said = re.fullmatch("`(.+)`", page[name][key])
            if said is None or one.default is MISSING:
                continue  # A table, a key without a default, or one whose default differs by table.
            default = list(one.default) if isinstance(one.default, tuple) else one.default
            assert tomllib.loads(f"x = {said[1]}")["x"] == default, f"[{name}] {key}"
            num_checked += 1
    assert num_checked > 50


def commands() -> list[str]:
    """The README's console lines."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_two_set_up_commands_are_there() -> None:
    assert commands()[:2] == ["scripts/demo", "scripts/test"]
    assert all(os.access(ROOT / name, os.X_OK) for name in commands()[:2])
    assert "exec scripts/test" in (ROOT / ".ci" / "run").read_text()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's reader has: a SavedModel, photos, arrays and the plan."""
    folder = tmp_path_factory.mktemp("readme")
    network = """
import sys, keras
keras.utils.set_random_seed(0)
image = keras.Input((224, 224, 3), name="image")
x = keras.layers.Conv2D(16, 7, strides=8, activation="relu")(image)
x = keras.layers.Conv2D(16, 3, strides=2, activation="relu")(x)
x = keras.layers.GlobalAveragePooling2D()(x)
keras.Model(image, keras.layers.Dense(4, activation="softmax")(x)).export(sys.argv[1], verbose=False)
"""
    made = folder / "my_savedmodel"
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", network, str(made)], env=quiet, check=True, capture_output=True)
    random = np.random.default_rng(0)
    for which in ("calibration", "evaluation"):
        for number in range(16):
            path = folder / "photos" / which / "abcd"[number % 4] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (256, 300, 3), dtype=np.uint8)).save(path)
        samples = random.uniform(-1, 1, (16, 224, 224, 3)).astype(np.float32)
        np.savez(folder / f"{which}.npz", image=samples, y=np.arange(16) % 4)
    toml = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)[0]
    quick = "\n[validate.int8]\nmax_metric_drop = 1.0\nmin_cosine = 0.0\n[benchmark.protocol]\nmin_seconds = 0.1\n"
    (folder / "plan.toml").write_text(toml + quick)
    (folder / "fleet.toml").write_text(re.findall(r"```toml\n(\[fleet\]\n.*?)```", README, flags=re.DOTALL)[0])
    return folder


@pytest.mark.slow
def test_the_readmes_commands_run(workplace: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the README builds with TensorRT for RTX, which is not installed")
    lines = [line for line in commands() if line.startswith("trtforge ")]
    assert len(lines) >= 9
    for line in lines:
        words = shlex.split(line)
        if words[1] == "show":
            words[2] = next((workplace / ".trtforge" / "build").iterdir()).name[:12]
        elif words[1] == "benchmark":
            words += ["--min-seconds", "0.1", "--min-queries", "20"]
        command = [sys.executable, "-m", "pipeline", *words[1:]]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in ((0, 5) if words[1] == "validate" else (0,)), f"{line}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    assert (workplace / "trtforge-report" / "report.html").is_file()
    assert (workplace / "model.engine").is_file()
    assert (workplace / "nightly" / "index.html").is_file()
    assert (workplace / "models" / "last-good" / "config.pbtxt").is_file()
