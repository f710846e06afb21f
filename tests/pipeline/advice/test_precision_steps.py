"""Does a lower precision pay? From made-up timings of variants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.advice.precision_steps import steps_from
from pipeline.latency.benchmark import Queries, Timing, latency_from_ms
from pipeline.record import VariantRecord

MakeVariant = Callable[[str, float | None, int], VariantRecord]
MakeTimed = Callable[[VariantRecord, float, float | None], VariantRecord]


def timing(name: str, p50_ms: float) -> Timing:
    """Ten blocks of twenty queries that wander together by 2 %."""
    wave = 1 + 0.02 * np.sin(np.repeat(np.arange(10.0), 20))
    latency = p50_ms * wave
    queries = Queries(latency, np.repeat(np.arange(10), 20), np.cumsum(latency), np.full(200, math.nan))
    return Timing(name, 1, latency_from_ms(latency), 1.0, None, 200, True, "", queries)


def test_each_precision_against_the_next_higher(make_variant: MakeVariant, make_timed: MakeTimed) -> None:
    p50_ms = {"fp32@onnxruntime": 0.4, "fp16@onnxruntime": 0.41, "int8@onnxruntime": 0.2, "fp32@tensorrt": 0.1}
    sizes = {"fp32@onnxruntime": 1000, "fp16@onnxruntime": 500, "int8@onnxruntime": 490, "fp32@tensorrt": 900}
    variants = [make_timed(make_variant(name, 0.0, sizes[name]), ms, 1.0) for name, ms in p50_ms.items()]
    half, eighth = steps_from(variants, [timing(name, ms) for name, ms in p50_ms.items()])
    assert (half.lower, half.higher) == ("fp16@onnxruntime", "fp32@onnxruntime")
    assert half.pays_in == ("size",), "it is smaller, and no faster; the energy is as the latency"
    assert half.low <= half.speedup <= half.high < 1
    assert half.sentence.startswith("fp16@onnxruntime pays in size, not in speed or energy against fp32@onnxruntime")
    assert (eighth.lower, eighth.higher) == ("int8@onnxruntime", "fp16@onnxruntime")
    assert eighth.pays_in == ("speed", "energy")
    assert eighth.speedup == 2.05 or abs(eighth.speedup - 2.05) < 1e-9


def test_what_does_not_pay_at_all(make_variant: MakeVariant, make_timed: MakeTimed) -> None:
    full = make_timed(make_variant("fp32@onnxruntime", 0.0, 1000), 0.4, 1.0)
    low = make_timed(make_variant("int8@onnxruntime", 0.0, 1100), 0.4, 1.0)
    bare = [replace(v, by_batch=(replace(v.by_batch[0], energy_mj=None),)) for v in (full, low)]
    (step,) = steps_from(bare, [timing("fp32@onnxruntime", 0.4), timing("int8@onnxruntime", 0.4)])
    assert step.pays_in == ()
    assert step.energy_ratio is None
    assert step.sentence == (
        "int8@onnxruntime does not pay against fp32@onnxruntime: 1.00× as fast (95 % interval 1.00 to 1.00), 1.10× the "
        "size, energy not measured."
    )


def test_what_was_not_timed_is_no_step(make_variant: MakeVariant, make_timed: MakeTimed) -> None:
    full = make_timed(make_variant("fp32@onnxruntime", 0.0, 1000), 0.4, 1.0)
    untimed = make_variant("int8@onnxruntime", 0.0, 500)
    assert steps_from([full, untimed], [timing("fp32@onnxruntime", 0.4)]) == ()
