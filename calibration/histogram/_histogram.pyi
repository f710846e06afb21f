# The compiled module of histogram.c; absent where there was no compiler.
import numpy as np
import numpy.typing as npt

NUM_COUNTERS: int
"""In a table."""
NUM_RESULTS: int
"""Of ``add``: exponent, smallest and largest value, zeros, infinities."""

def add(
    values: npt.NDArray[np.float32], table: npt.NDArray[np.uint32], exponent: int, /
) -> tuple[int, float, float, int, int]: ...
def channel_sums(
    values: npt.NDArray[np.float32],
    sums: npt.NDArray[np.float64],
    num_groups: int,
    num_positions: int,
    num_lanes: int,
    /,
) -> None: ...
def use(instructions: str, /) -> str: ...
