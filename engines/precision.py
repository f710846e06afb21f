"""The precisions that a network can be given: one record each, which is asked; no name is compared elsewhere.

A model that is to be built in a precision has it written in. How such a model is made is up to a stage of the pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.errors import Unavailable


@dataclass(frozen=True)
class Precision:
    """How a network's numbers are kept and computed.

    For example ``Precision("int8", weight_bits=8, activation_bits=8, order=40, is_integer=True, needs_ranges=True)``.
    """

    name: str
    """As it stands in plans, reports and on the command line."""
    weight_bits: int
    activation_bits: int
    order: int
    """From the highest precision on, which has 0. A variant is compared with the next higher one of its backend."""
    is_integer: bool = False
    """Whether weights and activations of convolutions and matrix products are integers with scales."""
    is_dynamic: bool = False
    """Whether scales of activations are found anew at each run, instead of from calibration."""
    needs_ranges: bool = False
    """Whether the model is written with the ranges that calibration found."""

    @property
    def is_static(self) -> bool:
        """Whether it is integers, those of activations with scales that calibration found."""
        return self.is_integer and not self.is_dynamic

    @property
    def has_scales(self) -> bool:
        """Whether it is static with integers of one width throughout, as Q/DQ nodes write."""
        return self.is_static and self.weight_bits == self.activation_bits

    @property
    def has_many_levels(self) -> bool:
        """Whether rounding activations loses less than clipping does, so that all values that were seen are kept."""
        return self.activation_bits >= 16

    @property
    def title(self) -> str:
        """In sentences: ``INT8``."""
        return self.name.upper()

    @property
    def is_full(self) -> bool:
        """Whether nothing is reduced: what other precisions are compared with."""
        return self.weight_bits == self.activation_bits == 32

    @property
    def is_half(self) -> bool:
        """Whether it is floating-point numbers of 16 bits throughout."""
        return self.weight_bits == self.activation_bits == 16 and not self.is_integer


FP32 = Precision("fp32", weight_bits=32, activation_bits=32, order=0)
FP16 = Precision("fp16", weight_bits=16, activation_bits=16, order=20, needs_ranges=True)
INT16X8 = Precision("int16x8", weight_bits=8, activation_bits=16, order=24, is_integer=True, needs_ranges=True)
DYNAMIC = Precision("dynamic", weight_bits=8, activation_bits=8, order=28, is_integer=True, is_dynamic=True)
INT8 = Precision("int8", weight_bits=8, activation_bits=8, order=40, is_integer=True, needs_ranges=True)

PRECISIONS: dict[str, Precision] = {precision.name: precision for precision in (FP32, FP16, INT16X8, DYNAMIC, INT8)}
"""By name, from the highest to the lowest."""


def precision_named(name: str) -> Precision:
    """The precision of that name.

    Raises:
        Unavailable: there is none.
    """
    if name not in PRECISIONS:
        raise Unavailable(f"precision '{name}': no such precision; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def rank(name: str) -> int:
    """The place of a precision among all that are known, by ``order``: 0 for the highest."""
    return sorted(PRECISIONS, key=lambda other: PRECISIONS[other].order).index(name)
