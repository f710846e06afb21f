"""What backends take of a model, as lines."""

from __future__ import annotations

from engines.support.answers import NodeAnswer, Partition, SupportAnswer
from pipeline.command.support_table import lines_of

RUNS = NodeAnswer("conv1", "Conv", "runs", runs_on="XNNPACK", flops=100)
ALSO = NodeAnswer("relu1", "Relu", "runs", runs_on="built-in", flops=10)
FOLDED = NodeAnswer("shape", "Shape", "folded")
NOT = NodeAnswer("det1", "Det", "unsupported", "there is no such operator; replace it")


def test_a_whole_model_is_one_line() -> None:
    answer = SupportAnswer("somebody", (RUNS, FOLDED), Partition(((0,),), (), 0, 1.0))
    assert list(lines_of(answer, all_nodes=False)) == ["somebody: 1 of 2 nodes run, 1 are folded, 0 do not run"]


def test_all_nodes_with_their_kernels() -> None:
    answer = SupportAnswer("somebody", (RUNS, ALSO, FOLDED), Partition(((0, 1),), (), 0, 1.0))
    assert list(lines_of(answer, all_nodes=True)) == [
        "conv1\tConv\truns (XNNPACK)",
        "relu1\tRelu\truns (built-in)",
        "shape\tShape\tis folded",
        "somebody: 2 of 3 nodes run, 1 are folded, 0 do not run",
        "kernels: 1 of XNNPACK, 1 of built-in",
    ]


def test_what_would_follow_where_a_node_does_not_run() -> None:
    many = Partition(tuple((index,) for index in range(5)), (5, 6), 9, 0.99999)
    answer = SupportAnswer(
        "somebody", (*[RUNS] * 5, NOT, NOT), many, ("is in opset 99; write it in opset 17",), ("Note.",)
    )
    assert list(lines_of(answer, all_nodes=False)) == [
        "det1\tDet\tdoes not run\tthere is no such operator; replace it",
        "det1\tDet\tdoes not run\tthere is no such operator; replace it",
        "somebody: 5 of 7 nodes run, 0 are folded, 2 do not run",
        "the model is in opset 99; write it in opset 17",
        "Note.",
        "partition: 5 segments, of 1, 1, 1, … nodes, with 99.9 % of the FLOPs; outside: 2 Det; tensors that cross: 9",
    ]


def test_nothing_runs() -> None:
    answer = SupportAnswer("somebody", (NOT,), Partition((), (0,), 0, 0.0))
    assert list(lines_of(answer, all_nodes=False))[-1] == (
        "partition: no segment, with 0.0 % of the FLOPs; outside: 1 Det; tensors that cross: 0"
    )


def test_the_first_reason_stands_for_all() -> None:
    answer = SupportAnswer("somebody", (RUNS, NOT), Partition(((0,),), (1,), 1, 0.9), ("is too new; write it again",))
    assert answer.sentence() == "is too new; write it again (and 1 more: `trtforge support` lists them)"
    assert SupportAnswer("somebody", (RUNS, NOT), Partition(((0,),), (1,), 1, 0.9)).sentence() == (
        "node 'det1', Det: there is no such operator; replace it"
    )
