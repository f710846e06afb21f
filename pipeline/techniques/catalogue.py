"""The techniques by name: which data each needs, and what is claimed of it.

The claims are those of the article that this program grew out of, and TensorFlow's documentation
("Post-training quantization", tensorflow.org/lite/performance/post_training_quantization).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Group: TypeAlias = Literal["none", "post-training", "mend", "training", "pruning"]
"""Steps of the ladder: post-training first, then what mends a loss for free, then training, pruning for size alone."""


@dataclass(frozen=True)
class Technique:
    """One way to make a network small and fast."""

    name: str
    """As in ``[advise] techniques``."""
    title: str
    group: Group
    data: str
    """What it needs of the user's data."""
    claim: str
    """What is said of it in general; empty where nothing is."""
    hardware: str
    """Where it runs faster, by the same sources."""


NONE = Technique("none", "no technique (FP32)", "none", "none", "", "CPU, GPU")

FLOAT16 = Technique(
    "float16", "float16", "post-training", "none", "more than 50 % smaller, negligible loss", "CPU, GPU"
)
DYNAMIC_RANGE = Technique(
    "dynamic_range", "dynamic range", "post-training", "none", "4 times smaller, 2 to 3 times as fast", "CPU"
)
INTEGER = Technique(
    "integer",
    "integer",
    "post-training",
    "unlabelled samples",
    "more than 75 % smaller, small loss",
    "CPU, Edge TPU, GPU with INT8",
)
INTEGER_16X8 = Technique("integer_16x8", "integer, 16-bit activations", "mend", "unlabelled samples", "", "CPU")
OTHER_RANGES = Technique("other_ranges", "integer, other ranges", "mend", "unlabelled samples", "", INTEGER.hardware)
EQUALIZATION = Technique(
    "equalization", "integer, equalized layers", "mend", "unlabelled samples", "", INTEGER.hardware
)
ROUNDING = Technique("rounding", "integer, weights rounded by data", "mend", "unlabelled samples", "", INTEGER.hardware)
MIXED_PRECISION = Technique(
    "mixed_precision", "integer, some layers in float", "mend", "unlabelled samples", "", INTEGER.hardware
)
QUANTIZATION_AWARE_TRAINING = Technique(
    "quantization_aware_training",
    "quantization-aware training",
    "training",
    "samples; labels if there are some",
    "least loss",
    INTEGER.hardware,
)
PRUNING = Technique(
    "pruning",
    "pruning",
    "pruning",
    "unlabelled samples",
    "same size on disk, same latency, compresses better",
    "CPU, GPU",
)
PRUNING_AND_TRAINING = Technique(
    "pruning_and_training",
    "pruning and training, then integer",
    "pruning",
    "samples; labels if there are some",
    "",
    INTEGER.hardware,
)

TECHNIQUES = {
    technique.name: technique
    for technique in (
        NONE,
        FLOAT16,
        DYNAMIC_RANGE,
        INTEGER,
        INTEGER_16X8,
        OTHER_RANGES,
        EQUALIZATION,
        ROUNDING,
        MIXED_PRECISION,
        QUANTIZATION_AWARE_TRAINING,
        PRUNING,
        PRUNING_AND_TRAINING,
    )
}
"""By name, in the order in which they are tried."""
