"""Which operators' INT8 brings the noise of a `.tflite` file's outputs: each written by itself, on a few samples."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from calibration.arrays import AnyArray, Floats
from calibration.data.batches import Samples
from calibration.ranges.ranges_file import ranges_from_folder
from engines import module_of
from engines.backends import litert
from engines.litert import quantizer
from engines.litert.facts import BRIDGES, TfliteFacts, TfliteOperator
from engines.litert.quantizer import TfliteFormat, quantized
from pipeline.accuracy.layer_noise import FILE, MOST_SAMPLES, MOST_VALUES, InputNoise, relative_noise
from pipeline.accuracy.tflite_bisection import counterparts
from pipeline.artifact import LayerNoises, Ranges, TfliteModel
from pipeline.engine_runner import SampleFeeds, SampleRunner, few
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import counting
from pipeline.stages.ptq import bounds_for

SQUEEZING = frozenset({"SOFTMAX", "LOGISTIC"})
"""As the last operator it hides noise: what it reads is looked at."""


@dataclass(frozen=True)
class MeasureOperators:
    """Operators by their share of the noise.

    Each is written in the format while all others stay in FP32, and the noise that the outputs have then is counted
    relative to their signal, by LiteRT's own kernels. Outputs are read before a last Softmax or Sigmoid.
    """

    form: TfliteFormat
    num_threads: int = 0
    """Of LiteRT; 0: its default."""

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions(quantizer.DISTRIBUTION, litert.DISTRIBUTION, "numpy")

    def modules(self, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(litert.NAME),)

    def __call__(self, out: Path, model: TfliteModel, ranges: Ranges, samples: Samples) -> LayerNoises:
        """Write ``out/noise.json``: an ``InputNoise`` for each operator, the noisiest first.

        Raises:
            Unavailable: ai-edge-litert or ai-edge-quantizer is not installed.
            EngineError: one of the files cannot be written, or not run.
        """
        facts = litert.tflite_facts(model.path)
        bounds = bounds_for(ranges_from_folder(ranges.path), self.form.precision)
        operators = [each for each in facts.main_operators if each.kind not in BRIDGES]
        names = [each.name for each in operators]
        num_values = sum(prod(each.shape) for operator in operators for each in operator.outputs) * len(operators)
        feeds = list(few(samples, min(max(int(MOST_VALUES / max(num_values, 1)), 1), MOST_SAMPLES)))
        answers = _answers(facts)
        with tempfile.TemporaryDirectory(prefix="trtforge-") as folder:
            exact = self._answered(model.path, feeds, dict(zip(answers, answers)))
            powers: list[tuple[float, TfliteOperator]] = []
            with counting("noise of operators", len(operators)) as on_operator:
                for operator in operators:
                    others = tuple(name for name in names if name != operator.name)
                    file = Path(folder) / f"one{litert.SUFFIX}"
                    file.write_bytes(quantized(model.path, replace(self.form, in_float=others), bounds))
                    stands_for = counterparts(facts, litert.tflite_facts(file))
                    rounded = self._answered(file, feeds, {stands_for[name]: name for name in stands_for})
                    powers.append((_noise(exact, rounded, answers), operator))
                    on_operator(len(powers))
        total = sum(power for power, _ in powers)
        ordered = sorted(powers, key=lambda item: -item[0]) if total > 0 else []
        noises = [InputNoise(each.name, (each.name,), power / total) for power, each in ordered]
        (out / FILE).write_text(json.dumps([asdict(noise) for noise in noises], indent=1))
        return LayerNoises(out / FILE)

    def _answered(
        self, file: Path, feeds: Sequence[Mapping[str, AnyArray]], named: Mapping[str, str]
    ) -> list[dict[str, Floats]]:
        """By sample, what each tensor of the float file is; ``named``: by its name the one that stands for it."""
        with ExitStack() as stack:
            run = SampleRunner(stack.enter_context(SampleFeeds(litert.load_values(file, num_threads=self.num_threads))))
            results = [run(feed) for feed in feeds]
        return [
            {name: np.asarray(each[other], np.float64) for name, other in named.items() if other in each}
            for each in results
        ]


def _answers(facts: TfliteFacts) -> list[str]:
    """The tensors that are looked at: the outputs, or what a last Softmax or Sigmoid reads."""
    makers = {tensor.name: operator for operator in facts.main_operators for tensor in operator.outputs}
    names = []
    for _, tensor in facts.outputs:
        maker = makers.get(tensor.name)
        is_squeezed = maker is not None and maker.kind in SQUEEZING and maker.data is not None
        names.append(maker.data.name if is_squeezed and maker is not None and maker.data is not None else tensor.name)
    return names


def _noise(
    exact: Sequence[Mapping[str, Floats]], rounded: Sequence[Mapping[str, Floats]], names: Sequence[str]
) -> float:
    """Of all samples."""
    seen = [name for name in names if all(name in each for each in rounded)]
    return sum(
        relative_noise([expected[name] for name in seen], [actual[name] for name in seen])
        for expected, actual in zip(exact, rounded)
    )
