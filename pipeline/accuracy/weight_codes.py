"""Codes of weights that were chosen by data, and what is said of them (``pipeline.accuracy.weight_rounding``)."""

from __future__ import annotations

from statistics import median

import numpy as np

from calibration.precision.placement import ChosenCodes, CodesByNode
from pipeline.artifact import WeightCodes
from pipeline.spelling import some_of

NUM_NAMED = 5
"""Products in a sentence."""


def codes_from_folder(codes: WeightCodes) -> CodesByNode:
    """What ``RoundWeights`` wrote."""
    record = codes.read()
    with np.load(codes.path / "codes.npz", allow_pickle=False) as stored:
        by_node = {
            row["node"]: ChosenCodes(stored[f"codes_{number}"].astype(np.int16), stored[f"scales_{number}"])
            for number, row in enumerate(record["products"])
        }
    return CodesByNode(codes.digest(), by_node)


def rounding_sentence(codes: WeightCodes) -> str:
    """How many weights are rounded so, what of the error of their products is left, and which are not."""
    record = codes.read()
    rows, others = record["products"], record["others"]
    shares = [row["error"] / row["error_of_nearest"] for row in rows if row["error_of_nearest"]]
    left = f"; a product's squared error is {median(shares):.2f} of that by nearest codes (median)" if shares else ""
    names = some_of([f"'{other['node']}' ({other['operator']})" for other in others], NUM_NAMED)
    return (
        f"rounding gptq: weights of {len(rows)} of {record['num_products']} convolutions and matrix products, by the "
        f"second moments of their data on {record['num_samples']} calibration samples{left}"
        + (f"; as by squant: {names}" if others else "")
    )
