"""Ranges that a user sets, or reads in another way, by patterns of tensors or of the nodes that read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx

from calibration.errors import DataError
from calibration.graph.patterns import matching, nodes_by_name, nodes_meant
from calibration.histogram.histogram import Histogram
from calibration.ranges.ranges import RangesRecord, listed, read_by_method, with_bounds

WHERE = "[[quantize.override]]"


@dataclass(frozen=True)
class Override:
    """One exception: of some tensors the range or how it is read, or of some nodes how those they read are read, or
    the precision of the nodes. Of several that mean the same tensor, the last counts."""

    tensors: str = ""
    """Name or pattern of tensors."""
    nodes: str = ""
    """Name, operator type or pattern of nodes."""
    range: tuple[float, ...] = ()
    """Least and largest value; 0 always lies within."""
    method: Literal["", "entropy", "minmax", "percentile", "mse"] = ""
    """How the range is read from the histogram."""
    precision: Literal["", "fp32", "fp16"] = ""
    """``fp32``: not INT8; ``fp16``: FP16, where that is the precision of all that is not INT8."""

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            DataError: it names no tensors or nodes, or both; sets nothing, or two things; or a range that is none.
        """
        if bool(self.tensors) == bool(self.nodes):
            raise DataError('names neither or both of tensors and nodes; write one, such as tensors = "features/*"')
        changes = [key for key in ("range", "method", "precision") if getattr(self, key)]
        possible = ("range", "method") if self.tensors else ("method", "precision")
        if len(changes) != 1 or changes[0] not in possible:
            raise DataError(
                f"sets {' and '.join(changes) or 'nothing'} of {'tensors' if self.tensors else 'nodes'}, takes one of "
                f"{' and '.join(possible)}; write an entry for each"
            )
        if self.range and not (
            len(self.range) == 2 and all(math.isfinite(bound) for bound in self.range) and self.range[0] < self.range[1]
        ):
            raise DataError(
                f"range is {list(self.range)}, but must be two finite numbers, the smaller first; write range = [0, 6]"
            )

    def words(self) -> str:
        """As in a plan."""
        pattern = f"tensors = '{self.tensors}'" if self.tensors else f"nodes = '{self.nodes}'"
        low_high = f"range {self.range[0]:g} to {self.range[1]:g}" if self.range else ""
        return f"{WHERE} {pattern}: {low_high or self.method or self.precision}"


def overridden(
    ranges: RangesRecord, overrides: Sequence[Override], model: onnx.ModelProto, histograms: Mapping[str, Histogram]
) -> tuple[RangesRecord, list[str]]:
    """The ranges with those that the user set, and a sentence on each of them.

    Args:
        ranges: of the model.
        overrides: what the user wrote; of what sets a precision there is a sentence alone.
        model: FP32; values of weights are not needed.
        histograms: by tensor, to tell what a range that was set clips; none if that is of no interest.

    Raises:
        DataError: a pattern matches nothing; or a method is set, and the ranges were imported.
    """
    tensors, notes = dict(ranges.tensors), []
    nodes = nodes_by_name(model) if any(override.nodes for override in overrides) else {}
    for override in overrides:
        meant = nodes_meant(nodes, [override.nodes], f"{WHERE} nodes") if override.nodes else ()
        reading = [node for node in nodes.values() if node.name in meant or node.op_type in meant]
        if override.precision:
            notes.append(f"{override.words()}: {listed([node.name for node in reading])} nodes")
            continue
        names = (
            matching([override.tensors], ranges.tensors, f"{WHERE} tensors", "tensor with a range")
            if override.tensors
            else tuple(dict.fromkeys(name for node in reading for name in node.input if name in ranges.tensors))
        )
        if not names:
            raise DataError(f"{override.words()}: these nodes read no tensor with a range; name others, or tensors")
        for name in names:
            if override.range:
                tensors[name] = with_bounds(tensors[name], override.range, histograms.get(name))
            elif override.method:
                ranges.check_measured(override.words())
                tensors[name] = read_by_method(tensors[name], override.method)
        notes.append(f"{override.words()}: {listed(names)} tensors")
    return replace(ranges, tensors=tensors), notes
