"""Samples for the residual network of tests/tflite_files.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calibration.data.batches import Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource, InputSpec
from pipeline.artifact import TfliteModel
from tests.tflite_files import save_residual


def residual(folder: Path, batch: int = 1) -> TfliteModel:
    """The network, float."""
    return TfliteModel(save_residual(folder / f"batch{batch}.tflite", batch))


def samples_of(folder: Path, num: int, factor_of_first: float = 1.0) -> Samples:
    """So many samples; the first may be scaled, as one that came into the data by mistake."""
    rows = np.random.default_rng(4).uniform(-1, 1, (num, 8)).astype(np.float32)
    rows[0] *= factor_of_first
    file = folder / f"samples{num}-{factor_of_first}.npz"
    np.savez(file, x=rows)
    return open_samples(DataSource(str(file)), (InputSpec("x", "float32", (-1, 8)),), Preprocess(), folder)
