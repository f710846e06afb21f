"""Whether engines that are built for given shapes have them from the plan."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from calibration.data.batches import InputSpec, Samples
from engines import backend
from engines.contract import DYNAMIC
from engines.onnx_model import shape_text
from pipeline.engine_runner import as_model_takes, model_ranks
from pipeline.errors import ConfigError
from pipeline.plan import Plan
from pipeline.stages.infer import MOST_SAMPLES

BARE_KEY = re.compile("[A-Za-z0-9_-]+")
"""A TOML key that needs no quotes."""


def check_shape_ranges(plan: Plan, samples: Samples) -> None:
    """That each dynamic input has a shape range, in each profile, if engines are built for given shapes.

    Raises:
        ConfigError: one has none; the sentence ends with what to write into the plan, of the shape of the samples.
    """
    names = [name for name in plan.variants.backends if backend(name).NEEDS_RANGES]
    dynamic = [spec for spec in samples.specs if DYNAMIC in spec.shape]
    profiles = {"inputs": plan.model.inputs} | {
        f"profiles[{number}]": shapes for number, shapes in enumerate(plan.model.profiles)
    }
    for table, shapes in profiles.items():
        lacking = [spec for spec in dynamic if spec.name not in shapes]
        if names and lacking:
            shape = lacking[0].shape[lacking[0].is_whole :]
            raise ConfigError(
                f"{plan.path}: [model.{table}] has no shape range for input '{lacking[0].name}' "
                f"{shape_text(shape)}, and {names[0]} builds an engine for given shapes; write this into "
                f"the plan, with the shapes that will be used:\n{_ranges_to_write(plan, samples, lacking)}"
            )


def _ranges_to_write(plan: Plan, samples: Samples, lacking: Sequence[InputSpec]) -> str:
    """TOML for these inputs: of the shape of the first sample, and batches up to the largest of the plan."""
    first = as_model_takes(next(iter(samples.batches(samples.fixed_batch or 1))), model_ranks(samples))
    sizes = plan.benchmark.batch_sizes
    tables = []
    for spec in lacking:
        is_open = spec.shape[0] == DYNAMIC and not samples.fixed_batch
        batches = (
            (1, sizes[0], max(plan.infer.batch_size or MOST_SAMPLES, *sizes))
            if is_open
            else first[spec.name].shape[:1] * 3
        )
        key = spec.name if BARE_KEY.fullmatch(spec.name) else json.dumps(spec.name, ensure_ascii=False)
        rows = [f"{word} = {[size, *first[spec.name].shape[1:]]}" for word, size in zip(("min", "opt", "max"), batches)]
        tables.append("\n".join((f"[model.inputs.{key}]", *rows)))
    return "\n".join(tables)
