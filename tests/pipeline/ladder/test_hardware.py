"""What `[advise] hardware` names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.precision import FP16, FP32, INT8, INT16X8
from pipeline.errors import ConfigError
from pipeline.ladder.hardware import check_hardware, hardware_settings, suits, why_unsuited
from pipeline.ladder.steps import STEPS
from pipeline.plan import Plan, read_plan
from pipeline.results import Variant
from tests.pipeline.plans import LEAST, written

BY_NAME = {step.technique.name: step for step in STEPS}


def plan_for(folder: Path, hardware: str, backends: str = '"onnxruntime", "litert", "tensorrt_rtx"') -> Plan:
    text = LEAST + f'[variants]\nbackends = [{backends}]\n[advise]\nhardware = "{hardware}"\n'
    return read_plan(written(folder, text))


@pytest.mark.parametrize(
    ("hardware", "suited"),
    [
        ("", {"onnxruntime", "litert", "tensorrt_rtx"}),
        ("cpu", {"onnxruntime", "litert"}),
        ("tensorrt", {"tensorrt_rtx"}),
        ("edgetpu", {"litert"}),
    ],
)
def test_backends_run_on_their_hardware(tmp_path: Path, hardware: str, suited: set[str]) -> None:
    plan = plan_for(tmp_path, hardware)
    assert {name for name in plan.variants.backends if suits(plan, Variant(INT8, name))} == suited


def test_an_edge_tpu_takes_integers_of_eight_bits(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "edgetpu")
    assert not any(suits(plan, Variant(precision, "litert")) for precision in (FP32, FP16, INT16X8))
    assert why_unsuited(plan, BY_NAME["float16"].precisions) == "the Edge TPU computes integers of 8 bits alone"
    assert hardware_settings(plan, BY_NAME["float16"].precisions) == ()
    assert hardware_settings(plan, BY_NAME["integer"].precisions) == ("build.edgetpu=true", "convert.batch_size=1")
    changed = plan.changed(hardware_settings(plan, BY_NAME["integer"].precisions))
    assert (changed.build.edgetpu, changed.convert.batch_size) == (True, 1)


def test_techniques_that_the_hardware_does_not_take_are_refused(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "edgetpu")
    check_hardware(plan, [BY_NAME["float16"].precisions, BY_NAME["integer"].precisions])
    with pytest.raises(ConfigError, match="techniques names none of those; add integer"):
        check_hardware(plan, [BY_NAME["float16"].precisions])
    only = replace(plan, variants=replace(plan.variants, backends=("onnxruntime",)))
    with pytest.raises(ConfigError, match=r"no backend of \[variants\] is for it; add one of litert"):
        check_hardware(only, ())


def test_mends_of_onnx_models_are_not_for_tflite_files(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "", '"onnxruntime", "litert"')
    assert BY_NAME["equalization"].backends(plan) == ("onnxruntime",)
    assert BY_NAME["quantization_aware_training"].backends(plan) == ("onnxruntime",)
    assert BY_NAME["integer_16x8"].backends(plan) == ("litert",)
    assert BY_NAME["integer"].backends(plan) == ("onnxruntime", "litert")
    assert "takes no int16x8 model" in BY_NAME["integer_16x8"].why_not_for(plan, "onnxruntime")
