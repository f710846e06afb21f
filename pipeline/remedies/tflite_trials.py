"""The ways to INT8 that are tried of a `.tflite` file, the one that costs the engine least first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from calibration.ranges.ranges import AUTO
from calibration.ranges.ranges_file import ranges_from_folder
from engines.litert.quantizer import TfliteFormat
from pipeline.accuracy.layer_noise import noises_from_file
from pipeline.artifact import Ranges, TfliteModel
from pipeline.plan import Plan
from pipeline.remedies.operator_noise import MeasureOperators
from pipeline.remedies.trials import BY_AUTO, noisy_sets
from pipeline.results import Form, Network, Results, Variant
from pipeline.stages.ptq import Ptq
from pipeline.store import Store
from pipeline.variants import ranges_of, stage_for


@dataclass(frozen=True)
class TfliteTrial:
    """Another way to make the INT8 file."""

    ranges: Ranges
    by_auto: bool
    """Whether the ranges are ``auto``'s where the plan names another method."""
    changes: tuple[str, ...] = ()
    """Keys of [ptq] with the defaults' values, where the plan has others: ``per_channel``, ``weight_bits``."""
    exclude: tuple[str, ...] = ()
    """All that stays in FP32, what the plan excludes included; with ``num_added`` alone."""
    num_added: int = 0

    def words(self) -> str:
        """A phrase."""
        operators = f"{self.num_added} {'operator' if self.num_added == 1 else 'operators'} left in FP32"
        parts = [BY_AUTO] * self.by_auto + [f"[ptq] {line}" for line in self._lines()]
        return " and ".join(parts + [operators] * bool(self.num_added))

    def toml(self) -> str:
        """The lines to write into the plan."""
        lines = list(self._lines())
        if self.num_added:
            lines.append(f"exclude = {json.dumps(self.exclude, ensure_ascii=False)}")
        method = f'[calibrate]\nmethod = "{AUTO}"\n' if self.by_auto else ""
        return method + ("\n".join(["[ptq]", *lines, ""]) if lines else "")

    def plan(self, plan: Plan) -> Plan:
        """The plan with its changes."""
        defaults = {key: getattr(Ptq(), key) for key in self.changes}
        exclude = self.exclude if self.num_added else plan.ptq.exclude
        return replace(plan, ptq=replace(plan.ptq, exclude=exclude, **defaults))

    def network(self, network: Network) -> Network:
        """The network with its ranges."""
        form = network.forms[TfliteModel.FORMAT]
        return replace(network, forms={**network.forms, TfliteModel.FORMAT: Form(form.fp32, self.ranges)})

    def _lines(self) -> list[str]:
        return [f"{key} = {json.dumps(getattr(Ptq(), key))}" for key in self.changes]


def tflite_trials(plan: Plan, store: Store, made: Results, variant: Variant) -> Iterator[TfliteTrial]:
    """Ranges read in another way, which costs nothing; a scale for each channel; 8 bits; then operators in FP32.

    Of these ever more, those with the most noise first; none for the Edge TPU, which takes none.

    What a trial needs is made when it is asked for.
    """
    form, samples = made.network_of(variant).forms[TfliteModel.FORMAT], made.calibration
    assert isinstance(form.fp32, TfliteModel)
    assert form.ranges is not None
    assert samples is not None
    ranges = form.ranges
    by_auto = ranges_from_folder(ranges.path).method != AUTO
    if by_auto:
        auto = replace(plan, calibrate=replace(plan.calibrate, method=AUTO))
        ranges = ranges_of(auto, store, form.fp32, samples)
        yield TfliteTrial(ranges, by_auto)
    trial = TfliteTrial(ranges, by_auto)
    for key in ("per_channel", "weight_bits"):
        if getattr(plan.ptq, key) != getattr(Ptq(), key):
            trial = replace(trial, changes=(*trial.changes, key))
            yield trial
    stage = stage_for(trial.plan(plan), variant)
    assert isinstance(stage, Ptq)
    if stage.edgetpu:
        return
    wanted = TfliteFormat(variant.precision, stage.per_channel, weight_bits=stage.weight_bits)
    measure = MeasureOperators(wanted, num_threads=plan.tolerate.num_threads)
    noises = noises_from_file(store.run(measure, form.fp32, ranges, samples).path)
    for names in noisy_sets(noises):
        added = [name for name in names if name not in plan.ptq.exclude]
        if added:
            yield replace(trial, exclude=(*plan.ptq.exclude, *added), num_added=len(added))
