"""Engines run on samples: a batch that was filled up is cut again."""

from __future__ import annotations

import numpy as np

from pipeline.engine_runner import unpadded


def test_only_what_was_padded_is_cut() -> None:
    four, scalar = np.arange(4.0), np.array(1.0)
    assert unpadded(four, 3, 4).tolist() == [0, 1, 2]
    assert unpadded(four, 4, 4) is four
    assert unpadded(four, 3, 8) is four, "its first dimension is not the batch"
    assert unpadded(scalar, 3, 4) is scalar
