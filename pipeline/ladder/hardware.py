"""What ``[advise] hardware`` names: which backends and precisions are for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engines import backend, builders
from engines.precision import Precision, precision_named
from pipeline.errors import ConfigError
from pipeline.plan import Plan
from pipeline.results import Variant


@dataclass(frozen=True)
class TargetHardware:
    """A word of ``[advise] hardware``."""

    takes_backend: Callable[[str], bool]
    """Whether a backend's engines run there."""
    takes_precision: Callable[[Precision], bool] = lambda _precision: True
    settings: tuple[str, ...] = ()
    """What ``--set`` makes of the plan for it."""
    limits: str = ""
    """Why it does not take a precision."""


HARDWARE = {
    "": TargetHardware(lambda _name: True),
    "cpu": TargetHardware(lambda name: not backend(name).GPU),
    "tensorrt": TargetHardware(lambda name: backend(name).GPU),
    "edgetpu": TargetHardware(
        lambda name: "edgetpu" in backend(name).OBEYS,
        lambda precision: precision.has_scales,
        ("build.edgetpu=true", "convert.batch_size=1"),
        "the Edge TPU computes integers of 8 bits alone",
    ),
}
"""By the word."""


def suits(plan: Plan, variant: Variant) -> bool:
    """Whether a variant runs on what ``[advise] hardware`` names."""
    hardware = HARDWARE[plan.advise.hardware]
    return hardware.takes_backend(variant.backend) and hardware.takes_precision(variant.precision)


def why_unsuited(plan: Plan, precisions: Iterable[str]) -> str:
    """Why the hardware does not take all of these precisions; empty if it does."""
    hardware = HARDWARE[plan.advise.hardware]
    is_taken = all(hardware.takes_precision(precision_named(name)) for name in precisions)
    return "" if is_taken else hardware.limits


def hardware_settings(plan: Plan, precisions: Iterable[str]) -> tuple[str, ...]:
    """What ``--set`` makes of the plan so that engines of these precisions are for the hardware."""
    return () if why_unsuited(plan, precisions) else HARDWARE[plan.advise.hardware].settings


def suited_backends(plan: Plan, names: Iterable[str]) -> tuple[str, ...]:
    """Of these backends, those that are for the hardware."""
    return tuple(name for name in names if HARDWARE[plan.advise.hardware].takes_backend(name))


def check_hardware(plan: Plan, made: Sequence[tuple[str, ...]]) -> None:
    """That something can be made for the hardware, of the precisions that each technique after FP32 makes.

    Raises:
        ConfigError: no backend of the plan is for it, or no technique that the plan names.
    """
    word = plan.advise.hardware
    hardware = HARDWARE[word]
    if not any(hardware.takes_backend(name) for name in plan.variants.backends):
        fitting = [name for name in builders() if hardware.takes_backend(name)]
        raise ConfigError(
            f"{plan.path}: [advise] hardware is {word}, but no backend of [variants] is for it; add one of "
            f"{', '.join(fitting)}"
        )
    if made and all(why_unsuited(plan, precisions) for precisions in made):
        raise ConfigError(
            f"{plan.path}: [advise] hardware is {word}, but {hardware.limits}, and techniques names none of those; "
            "add integer"
        )
