"""INT8 that is slower than FP32 is told, with what keeps such layers in float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.advice.slow_integers import slower_than_fp32
from pipeline.record import VariantRecord

MakeVariant = Callable[[str, float | None, int], VariantRecord]
MakeTimed = Callable[[VariantRecord, float, float | None], VariantRecord]


@pytest.mark.parametrize(
    ("name", "interval", "is_told"),
    [
        ("int8@onnxruntime", (0.5, 0.6), True),
        ("int8@onnxruntime", (0.9, 1.01), False),
        ("fp16@onnxruntime", (0.5, 0.6), False),
        ("dynamic@onnxruntime", (0.5, 0.6), False),
        ("int8@tensorrt", (0.5, 0.6), False),
        ("int8@litert", (0.5, 0.6), False),
    ],
)
def test_int8_for_onnx_runtime_that_is_slower_beyond_doubt(
    make_variant: MakeVariant, make_timed: MakeTimed, name: str, interval: tuple[float, float], is_told: bool
) -> None:
    variant = make_timed(make_variant(name, 0.0, 1000), 0.4, 0.55)
    timed = replace(variant, by_batch=(replace(variant.by_batch[0], speedup=0.55, speedup_interval=interval),))
    told = list(slower_than_fp32([timed, make_variant("int8@onnxruntime", None, 1000)]))
    assert (
        told
        == [
            "int8@onnxruntime: is only 0.55× as fast as FP32 (95 % interval 0.50 to 0.60) on this CPU; [quantize] "
            'placement = "timed" leaves in float what is quicker so'
        ]
        * is_told
    )
