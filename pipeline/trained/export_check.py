"""Whether the exported model answers as the trained network does: before anything is built on it."""

from __future__ import annotations

from dataclasses import replace

from engines.precision import FP32, INT8, Precision
from pipeline.artifact import Engine, Outputs, Source, Verdict
from pipeline.engine_runner import SIMULATOR
from pipeline.errors import CheckFailed
from pipeline.plan import Plan
from pipeline.results import Results
from pipeline.sources.contract import source_kind
from pipeline.stages.validate import Judged
from pipeline.store import Store
from pipeline.variants import judge_of, trained_network


def check_export(plan: Plan, store: Store, made: Results) -> None:
    """Compare the ONNX model's answers with the trained network's, on all evaluation samples.

    Of a network that came quantized each node runs as it is written: a kernel of integers in the place of several nodes
    adds in another order, and a value between two steps then falls to the other one.

    Raises:
        CheckFailed: they differ by more than the tolerances for FP32, or where the network came quantized and another
            library ran it, for INT8.
    """
    assert made.reference is not None
    trained, exported, precision = trained_network(plan, made), made.reference, FP32
    if made.came_quantized:
        is_other = trained.backend != plan.validate.reference
        precision = INT8 if is_other else FP32
        as_written = is_other or trained.backend == SIMULATOR
        trained = replace(trained, simulated=trained.backend == SIMULATOR)
        with store.about("the exported network"):
            ready = Engine(made.exported.path, plan.validate.reference, simulated=as_written)
            exported = store.run(plan.infer, ready, made.evaluation)
    made.source_verdict = _checked_export(plan, store, made, (made.source, trained, exported), precision)
    if made.float_source is not None:
        ready = source_kind(made.float_source.KIND).trained(made.float_source, made.fp32, plan.validate.reference)
        _checked_export(plan, store, made, (made.float_source, ready, made.reference), FP32)


def _checked_export(
    plan: Plan, store: Store, made: Results, what: tuple[Source, Engine, Outputs], precision: Precision
) -> Verdict:
    """The verdict on what the exported model of a source answered, by what its trained network does."""
    source, trained, exported = what
    with store.about("the trained network"):
        answers = store.run(plan.infer, trained, made.trained_evaluation or made.evaluation)
        saved = store.run(plan.validate, answers, exported, made.evaluation, Judged(judge_of(plan), precision.name))
    verdict = saved.read()
    if not verdict["passed"]:
        folded = ", with [data.preprocess] folded into it," if made.trained_evaluation else ""
        raise CheckFailed(
            f"{source.path}: the exported ONNX model{folded} does not compute what the network does: "
            f"{'; '.join(verdict['failures'])}; nothing was built on it; loosen [validate.{precision.name}] only if "
            "you know why"
        )
    return saved
