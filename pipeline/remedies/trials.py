"""The ways to INT8 that are tried, the one that costs the engine least first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from calibration.precision.placement import FULL_BITS, PlacementTarget
from calibration.ranges.ranges import AUTO
from calibration.ranges.ranges_file import ranges_from_folder
from engines import backend
from pipeline.accuracy.layer_noise import InputNoise, MeasureLayers, noises_from_file, noisiest_nodes
from pipeline.artifact import Ranges
from pipeline.plan import Plan
from pipeline.results import Network, Results, Variant
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from pipeline.variants import ranges_of

BY_AUTO = f'[calibrate] method = "{AUTO}"'
BY_DATA = 'rounding = "gptq"'
"""As it is written into [quantize]."""
SHARES = (0.5, 0.75, 0.9)
"""Of the noise that the layers which are left in FP32 bring, one trial after the other: some 3, 6 and 10 dB."""


@dataclass(frozen=True)
class Trial:
    """Another way to make the INT8 model."""

    ranges: Ranges
    by_auto: bool
    """Whether the ranges are ``auto``'s where the plan names another method."""
    exclude: tuple[str, ...]
    """All that stays in FP32, what the plan excludes included."""
    num_added: int
    by_data: bool = False
    """Whether weights are rounded by samples where the plan rounds them without."""

    def words(self) -> str:
        """A phrase."""
        layers = f"{self.num_added} {'layer' if self.num_added == 1 else 'layers'} left in FP32"
        parts = [BY_AUTO] * self.by_auto + [f"[quantize] {BY_DATA}"] * self.by_data
        return " and ".join(parts + [layers] * bool(self.num_added))

    def toml(self) -> str:
        """The lines to write into the plan."""
        method = f'[calibrate]\nmethod = "{AUTO}"\n' if self.by_auto else ""
        excluded = f"exclude = {json.dumps(self.exclude, ensure_ascii=False)}\n" * bool(self.num_added)
        keys = f"{BY_DATA}\n" * self.by_data + excluded
        return method + (f"[quantize]\n{keys}" if keys else "")

    def plan(self, plan: Plan) -> Plan:
        """The plan with its changes."""
        rounding = "gptq" if self.by_data else plan.quantize.rounding
        return replace(plan, quantize=replace(plan.quantize, exclude=self.exclude, rounding=rounding))

    def network(self, network: Network) -> Network:
        """The network with its ranges."""
        return Network(network.fp32, self.ranges)


def trials(plan: Plan, store: Store, made: Results, variant: Variant) -> Iterator[Trial]:
    """Ranges read in another way and weights of 4 bits rounded by samples, which cost no speed; then layers in FP32.

    Of these ever more, those with the most noise first.

    What a trial needs is made when it is asked for.
    """
    network, samples = made.network_of(variant), made.calibration
    assert network.ranges is not None
    assert samples is not None
    ranges, excluded = network.ranges, plan.quantize.exclude
    by_auto = ranges_from_folder(ranges.path).method != AUTO
    if by_auto:
        auto = replace(plan, calibrate=replace(plan.calibrate, method=AUTO))
        ranges = ranges_of(auto, store, network.fp32, samples)
        yield Trial(ranges, by_auto, excluded, 0)
    by_data = plan.quantize.weight_bits != FULL_BITS and not plan.quantize.rounds_by_data()
    if by_data:
        yield Trial(ranges, by_auto, excluded, 0, by_data)
    stage = quantize_for(plan, variant)
    measure = MeasureLayers(stage.placement_options(network.fp32), num_threads=plan.tolerate.num_threads)
    noises = noises_from_file(store.run(measure, network.fp32, ranges, samples).path)
    yield from (Trial(ranges, by_auto, (*excluded, *nodes), len(nodes), by_data) for nodes in noisy_sets(noises))


def noisy_sets(noises: Sequence[InputNoise]) -> Iterator[tuple[str, ...]]:
    """The nodes behind ever more of the noise, each set once."""
    sets = [noisiest_nodes(noises, share) for share in SHARES]
    yield from (nodes for nodes in dict.fromkeys(sets) if nodes)


def quantize_for(plan: Plan, variant: Variant) -> Quantize:
    """The plan's stage, placed for the variant's backend."""
    return plan.quantize.placed_for(cast(PlacementTarget, backend(variant.backend).PLACEMENT))
