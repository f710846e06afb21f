"""The rows of NVIDIA's lists that say no, written down apart from those that say yes."""

from __future__ import annotations

import pytest

from engines.support.operator_lists import RELEASES, TensorRtRelease, generation_named

NEVER = (
    "AffineGrid",
    "Bernoulli",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "CenterCropPad",
    "Col2Im",
    "Compress",
    "ConcatFromSequence",
    "ConvInteger",
    "DFT",
    "Det",
    "DynamicQuantizeLinear",
    "ImageDecoder",
    "MatMulInteger",
    "MaxRoiPool",
    "MaxUnpool",
    "MelWeightMatrix",
    "Multinomial",
    "NegativeLogLikelihoodLoss",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "QLinearConv",
    "QLinearMatMul",
    "RegexFullMatch",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SoftmaxCrossEntropyLoss",
    "SplitToSequence",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "TfIdfVectorizer",
    "Unique",
)
"""With an N on the page of 10.15, and of each before it that has them at all."""
SINCE = (
    ("BlackmanWindow", "10.4"),
    ("DeformConv", "10.1"),
    ("Attention", "10.14"),
    ("CastLike", "10.0"),
    ("Gelu", "10.0"),
    ("GroupNormalization", "8.6"),
    ("HammingWindow", "10.4"),
    ("HannWindow", "10.4"),
    ("Hardmax", "10.0"),
    ("IsInf", "8.6"),
    ("LayerNormalization", "8.6"),
    ("Mish", "10.0"),
    ("RMSNormalization", "10.15"),
    ("RotaryEmbedding", "10.15"),
    ("STFT", "10.5"),
    ("TensorScatter", "10.15"),
)
"""And the release that was the first with a Y, by its page or by the changelog."""


@pytest.mark.parametrize("operator", NEVER)
def test_what_no_release_reads(operator: str) -> None:
    assert not any(operator in TensorRtRelease(release).operators for release in RELEASES)
    assert generation_named("8.5").first_with(operator) == ""


@pytest.mark.parametrize(("operator", "first"), SINCE)
def test_what_a_release_was_the_first_to_read(operator: str, first: str) -> None:
    reading = [TensorRtRelease(release).name for release in RELEASES if operator in TensorRtRelease(release).operators]
    assert reading[0] == first
    assert reading == [TensorRtRelease(release).name for release in RELEASES][-len(reading) :]
    assert generation_named("8.5").first_with(operator) == first
