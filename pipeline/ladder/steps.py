"""What each technique changes of a plan, and when the ladder goes on to it.

The order and the conditions are the advice of the article: begin with post-training quantization; train for it where
accuracy is still missed, or an accelerator needs integers; prune before quantizing where only the size is missed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from calibration.precision.placement import FULL_BITS, RoundingMethod
from calibration.ranges.ranges import AUTO
from engines import backend
from engines.model_format import ModelFormat
from engines.precision import DYNAMIC, FP16, FP32, INT8, INT16X8, precision_named
from engines.torch_graph import library
from pipeline.artifact import PRUNED, TRAINED, TUNED, OnnxModel
from pipeline.errors import ConfigError
from pipeline.ladder.ascent import Ascent
from pipeline.plan import Plan
from pipeline.results import Variant
from pipeline.stages.quantize import Quantize
from pipeline.techniques import catalogue
from pipeline.techniques.catalogue import Technique
from pipeline.variants import is_made, is_native, stage_for

MORE_SQNR_DB = 6.0
"""What mixed precision asks for beyond what INT8 has, where no metric can be asked for: half the noise's amplitude."""
EPOCHS = 30
"""In which a pruned network is trained, where the plan does not say: as in benchmarks/results/training.md."""
BY_DATA: RoundingMethod = "gptq"
COMPRESSED = "size_compressed_mib"
"""The quantity that pruning is for."""


Why: TypeAlias = Callable[[Ascent], str]
"""Empty, or why a step is left out."""
Keys: TypeAlias = Callable[[Ascent], tuple[str, ...]]


def _no_reason(_ascent: Ascent) -> str:
    return ""


def _no_keys(_ascent: Ascent) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class TechniqueStep:
    """One technique as a change of the plan."""

    technique: Technique
    precisions: tuple[str, ...]
    """Of what it makes; FP32 is there beside them to be compared with."""
    network: str = TRAINED
    """Of what it makes."""
    beside: tuple[str, ...] = (TRAINED,)
    """The other networks that it needs."""
    prefix: str = ""
    """Before the variant's name in tables, with a plus."""
    only_onnx: bool = False
    """Whether it changes ONNX models alone."""
    keys: Keys = _no_keys
    """What else it changes of the plan, as ``--set`` takes it."""
    why_not: Why = _no_reason
    """Why it has no meaning with this plan, or here."""
    why_idle: Why = _no_reason
    """Why it would not help, by what was measured so far; `--all` tries it all the same."""

    def settings(self, ascent: Ascent, backends: Sequence[str]) -> tuple[str, ...]:
        """What ``--set`` makes of the plan for it."""
        tables: Mapping[str, Sequence[str]] = {
            "precisions": list(dict.fromkeys((FP32.name, *self.precisions))),
            "backends": list(backends),
            "networks": list(dict.fromkeys((*self.beside, self.network))),
        }
        return (*(f"variants.{key}={json.dumps(value)}" for key, value in tables.items()), *self.keys(ascent))

    def makes(self, variant: Variant) -> bool:
        """Whether a variant of its plan is what it is for, not one to be compared with."""
        return variant.network == self.network and variant.precision.name in self.precisions

    def name_of(self, variant: Variant) -> str:
        """In tables, where the same precision stands once for each technique."""
        return f"{self.prefix}+{variant.name}" if self.prefix else variant.name

    def backends(self, plan: Plan) -> tuple[str, ...]:
        """The plan's backends that take what it makes."""
        return tuple(name for name in plan.variants.backends if not self.why_not_for(plan, name))

    def why_not_for(self, plan: Plan, name: str) -> str:
        """Why nothing is made for that backend; empty if something is."""
        if self.only_onnx and backend(name).TAKES != OnnxModel.FORMAT:
            return f"{self.technique.title} is for backends that take an ONNX model, {name} does not"
        variants = [Variant(precision_named(precision), name, self.network) for precision in self.precisions]
        reasons = [_why_not_made(plan, variant) for variant in variants]
        return "" if "" in reasons else reasons[0]


def _why_not_made(plan: Plan, variant: Variant) -> str:
    if not is_made(variant):
        return f"{variant.name}: only networks for backends that take an ONNX model are trained or pruned"
    try:
        stage = stage_for(plan, variant)
    except ConfigError as error:
        return str(error)
    if variant.network == TUNED and (is_native(plan, variant) or not isinstance(stage, Quantize)):
        return f"{variant.name}: its INT8 is not written as Q/DQ nodes, which are what it would be trained for"
    return ""


def _integers_lose_nothing(ascent: Ascent) -> str:
    """Training and mends are for an accuracy that INT8 has lost."""
    rows = ascent.of(catalogue.INTEGER)
    if not rows:
        return "integer quantization was not made, so that there is no loss of it to mend"
    if all(row.is_accurate() for row in rows):
        return "integer quantization misses no bound on accuracy, so that there is no loss to mend"
    return ""


def _formats_that_lose(ascent: Ascent) -> set[ModelFormat]:
    """Of the models whose integers miss a bound on accuracy."""
    return {backend(row.variant.backend).TAKES for row in ascent.of(catalogue.INTEGER) if not row.is_accurate()}


def _only_on_onnx(ascent: Ascent) -> str:
    """As above; these are for INT8 that is written into an ONNX model."""
    losing = _formats_that_lose(ascent)
    if losing and OnnxModel.FORMAT not in losing:
        return "the integers that lose too much are not written into an ONNX model"
    return _integers_lose_nothing(ascent)


def _only_on_tflite(ascent: Ascent) -> str:
    if _formats_that_lose(ascent) == {OnnxModel.FORMAT}:
        return "the integers that lose too much are not in a .tflite file"
    return _integers_lose_nothing(ascent)


def _not_for_compression(ascent: Ascent) -> str:
    """Pruning is for a compressed size alone: file and latency stay what they are."""
    missed = [row.failing_quantities() for row in ascent.rows if not row.is_plain()]
    if {COMPRESSED} in missed:
        return ""
    if any(COMPRESSED in quantities for quantities in missed):
        return "the compressed size is not all that is missed"
    more = ", and pruning changes neither the size on disk nor the latency" if any(missed) else ""
    return f"no bound on the compressed size is missed{more}"


def _pruning_loses_nothing(ascent: Ascent) -> str:
    rows = ascent.of(catalogue.PRUNING)
    if not rows:
        return _not_for_compression(ascent) or "nothing was pruned"
    if all(row.is_accurate() for row in rows):
        return "pruning without training misses no bound on accuracy"
    return ""


def _has_auto(ascent: Ascent) -> str:
    is_auto = ascent.plan.calibrate.method == AUTO
    return "the plan's ranges are chosen by what the network answers already" if is_auto else ""


def _is_equalized(ascent: Ascent) -> str:
    return "the plan's [export] equalize is true already" if ascent.plan.export.equalize else ""


def _rounds_by_data(ascent: Ascent) -> str:
    return "the plan's [quantize] rounding is gptq already" if ascent.plan.quantize.rounding == BY_DATA else ""


def _rounding_loses_nothing(ascent: Ascent) -> str:
    """It is weights of 4 bits that rounding by data mends (docs/training.md, "Rounding by data")."""
    reason = _only_on_onnx(ascent)
    if not reason and ascent.plan.quantize.weight_bits == FULL_BITS:
        return "weights have 8 bits, which lose too little by rounding for data to win it back"
    return reason


def _is_mixed(ascent: Ascent) -> str:
    return "the plan's [quantize] has a bound for mixed precision already" if ascent.plan.quantize.is_bounded() else ""


def _no_torch(_ascent: Ascent) -> str:
    return library.why_not()


def _mixed_keys(ascent: Ascent) -> tuple[str, ...]:
    """The bound on the metric's drop, where calibration samples have labels; else half of INT8's noise."""
    drops = [bound.bound for bound in ascent.bounds if bound.quantity.name == "metric_drop"]
    if ascent.has_labels() and drops:
        return (f"quantize.max_metric_drop={min(drops)!r}",)
    ratios = [ratio for row in ascent.of(catalogue.INTEGER) if (ratio := row.worst_sqnr_db()) is not None]
    return (f"quantize.min_sqnr_db={math.ceil(min(ratios, default=20.0) + MORE_SQNR_DB)}.0",)


def _training_meanwhile(ascent: Ascent) -> tuple[str, ...]:
    """The network is trained with its zeros too, not for INT8 alone."""
    return () if ascent.plan.prune.epochs else (f"prune.epochs={EPOCHS}",)


STEPS = (
    TechniqueStep(catalogue.NONE, (FP32.name,)),
    TechniqueStep(catalogue.FLOAT16, (FP16.name,)),
    TechniqueStep(catalogue.DYNAMIC_RANGE, (DYNAMIC.name,)),
    TechniqueStep(catalogue.INTEGER, (INT8.name,)),
    TechniqueStep(catalogue.INTEGER_16X8, (INT16X8.name,), why_idle=_only_on_tflite),
    TechniqueStep(
        catalogue.OTHER_RANGES,
        (INT8.name,),
        prefix="auto",
        keys=lambda _ascent: (f"calibrate.method={json.dumps(AUTO)}",),
        why_not=_has_auto,
        why_idle=_integers_lose_nothing,
    ),
    TechniqueStep(
        catalogue.EQUALIZATION,
        (INT8.name,),
        prefix="equalized",
        only_onnx=True,
        keys=lambda _ascent: ("export.equalize=true",),
        why_not=_is_equalized,
        why_idle=_only_on_onnx,
    ),
    TechniqueStep(
        catalogue.ROUNDING,
        (INT8.name,),
        prefix="rounded",
        only_onnx=True,
        keys=lambda _ascent: (f"quantize.rounding={json.dumps(BY_DATA)}",),
        why_not=_rounds_by_data,
        why_idle=_rounding_loses_nothing,
    ),
    TechniqueStep(
        catalogue.MIXED_PRECISION,
        (INT8.name,),
        prefix="mixed",
        only_onnx=True,
        keys=_mixed_keys,
        why_not=_is_mixed,
        why_idle=_only_on_onnx,
    ),
    TechniqueStep(
        catalogue.QUANTIZATION_AWARE_TRAINING,
        (INT8.name,),
        network=TUNED,
        why_not=_no_torch,
        why_idle=_only_on_onnx,
    ),
    TechniqueStep(catalogue.PRUNING, (FP32.name, INT8.name), network=PRUNED, why_idle=_not_for_compression),
    TechniqueStep(
        catalogue.PRUNING_AND_TRAINING,
        (INT8.name,),
        network=TUNED,
        beside=(TRAINED, PRUNED),
        prefix="pruned",
        keys=_training_meanwhile,
        why_not=_no_torch,
        why_idle=_pruning_loses_nothing,
    ),
)
"""In the order in which they are tried."""
