"""Measure and compare the latency of engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from calibration.data.batches import Samples, open_samples
from pipeline.artifact import Engine, Timings
from pipeline.command.options import (
    BACKEND,
    STORE,
    data_from,
    data_options,
    engine_from,
    is_plan,
    output_option,
    plan_options,
    plugin_option,
    refuse_plan_options,
    specs_of,
)
from pipeline.command.outcomes import Timed, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.errors import ConfigError
from pipeline.output import passing_folder, put
from pipeline.stages.benchmark import Benchmark


@click.command()
@click.argument("engines", type=Path, nargs=-1, required=True)
@data_options
@BACKEND
@plugin_option
@stage_options(Benchmark)
@output_option("also write the results to this JSON file, and raw latencies next to it")
@plan_options
@STORE
def benchmark(engines: tuple[Path, ...], backend: str, **options: Any) -> VerbOutcome:
    """Measure and compare the latency of ENGINES of one backend on --data, or of all engines of PLAN.toml."""

    if is_plan(engines[0]):
        if len(engines) > 1:
            raise ConfigError(f"{engines[1]}: has no effect together with a plan; give a plan, or engines")
        return by_plan(engines[0], options["store"], "benchmark", options["beside_plan"])
    refuse_plan_options(options)
    return time_files([engine_from(path, backend, False) for path in engines], options)


def time_files(engines: list[Engine], options: dict[str, Any]) -> Timed:
    """Time engines against each other."""
    names = _by_name(engines)
    stage = stage_from_options(Benchmark(), options)
    by_path = {engine.path.resolve(): name for name, engine in names.items()}
    stage = replace(stage, together=tuple(by_path.get(Path(each).resolve(), each) for each in stage.together))
    output: Path | None = options["output"]
    with passing_folder(output) as work:
        fed = samples_of_each(names, options)
        timings = stage(work, names, next(iter(fed.values())), fed)
        if output:
            for file in raw_files(timings.read()):
                put(work / file, output.with_name(file), work)
            put(timings.path, output, work)
            timings = Timings(output)
        return Timed(timings.read())


def _by_name(engines: list[Engine]) -> dict[str, Engine]:
    names: dict[str, Engine] = {}
    for engine in engines:
        other = names.setdefault(engine.path.name, engine)
        if other is engine:
            continue
        if other.path.resolve() == engine.path.resolve():
            raise ConfigError(f"{engine.path}: is named twice; to run it twice at once name it twice in --together")
        raise ConfigError(f"{engine.path}: has the file name of another engine, {other.path}; rename one")
    return names


def samples_of_each(engines: Mapping[str, Engine], options: dict[str, Any]) -> dict[str, Samples]:
    """What each engine is fed: the same where they have the same inputs; takes the data options out of ``options``."""
    specs = {name: specs_of(engine) for name, engine in engines.items()}
    source, preprocess = data_from(options)
    opened = {each: open_samples(source, each, preprocess) for each in dict.fromkeys(specs.values())}
    return {name: opened[each] for name, each in specs.items()}


def raw_files(record: Mapping[str, Any]) -> Iterator[str]:
    """Names of the files with raw latencies."""
    yield from (row["samples"] for row in record["timings"])
    for row in (record["together"] or {"engines": ()})["engines"]:
        yield from (row["alone_file"], row["beside_file"])
