"""Codes of weights that were chosen by data, and what is said of them (``pipeline.accuracy.weight_rounding``)."""

from __future__ import annotations

from statistics import median

import numpy as np

from calibration.precision.placement import ChosenCodes, CodesByNode
from pipeline.artifact import WeightCodes


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
    """How many weights are rounded so, and what of the error of their products is left."""
    record = codes.read()
    rows, num = record["products"], record["num_products"]
    shares = [row["error"] / row["error_of_nearest"] for row in rows if row["error_of_nearest"]]
    left = f"; a product's squared error is {median(shares):.2f} of that by nearest codes (median)" if shares else ""
    return (
        f"rounding gptq: weights of {len(rows)} of {num} convolutions and matrix products, by the second moments of "
        f"their data on {record['num_samples']} calibration samples{left}"
    )
