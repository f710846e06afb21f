"""A plan is checked against this machine before anything is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, Unavailable
from pipeline.plan import read_plan
from pipeline.preflight.plan import check_plan
from pipeline.release.bundle_writer import narrowed
from pipeline.stages import benchmark
from tests.pipeline.machine.jetsons import tree
from tests.pipeline.machine.nvpmodels import add_nvpmodel, device_in
from tests.pipeline.plan_folder import change


def test_the_edge_tpu_takes_one_sample_and_is_litert_s(folder: Path) -> None:
    change(folder, 'backends = ["onnxruntime"]', 'backends = ["litert"]')
    with pytest.raises(ConfigError, match=r"edgetpu is true, but \[convert\] batch_size is 4: the Edge TPU takes one"):
        check_plan(read_plan(folder / "plan.toml", ["build.edgetpu=true", "convert.batch_size=4"]), "quantize")
    change(folder, 'backends = ["litert"]', 'backends = ["onnxruntime"]')
    with pytest.raises(
        ConfigError, match=r"\[build\] edgetpu: has no effect on an engine for onnxruntime, it is for li"
    ):
        check_plan(read_plan(folder / "plan.toml", ["build.edgetpu=true"]), "build")


def test_a_power_mode_that_nobody_can_set_here_is_refused_before_an_engine_is_timed(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    plan = read_plan(folder / "plan.toml", ['benchmark.power_mode=["MAXN"]'])
    monkeypatch.setattr(benchmark, "ROOT", tmp_path / "no_jetson")
    for until in ("benchmark", "gate"):
        with pytest.raises(Unavailable, match=r"\[benchmark\] power_mode: this machine has no table of power modes"):
            check_plan(plan, until)
    check_plan(plan, "validate")
    root = tmp_path / "jetson"
    root.mkdir()
    add_nvpmodel(tree(root, device_in(root, 2)), monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(benchmark, "ROOT", root)
    check_plan(plan, "benchmark")
    with pytest.raises(ConfigError, match="power_mode: 'FAST' is no mode of this device, there are 0 MAXN, "):
        check_plan(read_plan(folder / "plan.toml", ['benchmark.power_mode=["FAST"]']), "benchmark")
    assert (root / "calls").read_text() == "", "nothing was changed"


@pytest.mark.parametrize(
    ("precision", "verb", "words"),
    [
        ("int16x8", "quantize", "int16x8@onnxruntime: the backend takes no int16x8 model"),
        (
            "fp32",
            "cast",
            r"plan.toml: \[variants\] has nothing that `cast` writes, which is fp16 in onnx files; add such",
        ),
        ("int8", "ptq", "has nothing that `ptq` writes, which is fp16, dynamic, int8, int16x8 in tflite files"),
    ],
)
def test_a_verb_that_would_write_nothing_is_refused(precision: str, verb: str, words: str, folder: Path) -> None:
    change(folder, 'precisions = ["fp32", "fp16", "int8"]', f'precisions = ["{precision}"]')
    with pytest.raises(ConfigError, match=words):
        check_plan(read_plan(folder / "plan.toml"), verb)


def test_whom_a_bundle_is_for_is_said(folder: Path) -> None:
    change(folder, 'precisions = ["fp32", "fp16", "int8"]', 'precisions = ["dynamic"]')
    plan = narrowed(read_plan(folder / "plan.toml"))
    with pytest.raises(ConfigError, match=r"dynamic@tensorrt: .*; a bundle is for \[pack\] backends, tensorrt$"):
        check_plan(plan, "pack")
