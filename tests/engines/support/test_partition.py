"""Into which parts a model falls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.support.answers import NodeAnswer, NodeState, Partition
from engines.support.partition import GraphStep, partition


def parts(text: str) -> Partition:
    """Of lines such as ``a b > c runs 10``: what a node reads and makes, its state, its FLOPs."""
    steps, nodes = [], []
    for line in text.strip().splitlines():
        reads, _, rest = line.strip().partition(" > ")
        makes, state, flops = rest.split()
        assert state in ("runs", "folded", "unsupported")
        steps.append(GraphStep(tuple(reads.split()), (makes,)))
        nodes.append(NodeAnswer(makes, "Some", state, flops=int(flops)))  # type: ignore[arg-type]  # Just asserted.
    return partition(steps, nodes)


def test_a_whole_model_is_one_segment() -> None:
    assert parts("x > a runs 3\n a > b runs 1") == Partition(((0, 1),), (), 0, 1.0)
    assert parts("") == Partition((), (), 0, 1.0)


def test_a_node_in_the_middle_makes_two() -> None:
    whole = parts("x > a runs 90\n a > b unsupported 10\n b > c runs 100")
    assert whole == Partition(((0,), (2,)), (1,), 2, 0.95)


def test_a_branch_around_it_stays_with_the_first() -> None:
    """What joins both must wait for the node outside, so that it cannot be in the segment that feeds that node."""
    text = "x > a runs 1\n a > b unsupported 1\n a > c runs 1\n b c > d runs 1\n d > e runs 1"
    whole = parts(text)
    assert whole.segments == ((0, 2), (3, 4))
    assert whole.num_crossings == 3, "a goes out, b comes in, c goes from the first to the second"


def test_what_is_not_connected_is_not_joined() -> None:
    assert parts("x > a runs 1\n z > b runs 1").segments == ((0,), (1,))


def test_two_in_a_row_are_one_way_out_and_back() -> None:
    whole = parts("x > a runs 1\n a > b unsupported 1\n b > c unsupported 1\n c > d runs 1")
    assert (whole.segments, whole.outside, whole.num_crossings) == (((0,), (3,)), (1, 2), 2)


def test_what_is_folded_is_in_no_segment_and_crosses_nothing() -> None:
    whole = parts("k > w folded 50\n x w > a unsupported 10\n a w > b runs 30")
    assert whole == Partition(((2,),), (1,), 1, 0.75)


def test_nothing_that_works_is_shared_by_nodes() -> None:
    assert parts("x > a runs 0\n a > b unsupported 0").flops_share == 0.5
    assert parts("x > a unsupported 0").flops_share == 0.0


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[GraphStep], list[NodeAnswer]]:
    """Nodes in order, each of which reads what some before it make."""
    steps, nodes = [], []
    for number in range(draw(st.integers(0, 14))):
        reads = draw(st.sets(st.integers(-1, number - 1), max_size=3))
        states: tuple[NodeState, ...] = ("runs", "runs", "folded", "unsupported")
        state = draw(st.sampled_from(states))
        steps.append(GraphStep(tuple(f"t{each}" for each in sorted(reads)), (f"t{number}",)))
        nodes.append(NodeAnswer(f"n{number}", "Some", state, flops=draw(st.integers(0, 9))))
    return steps, nodes


def followers(steps: list[GraphStep], nodes: list[NodeAnswer], start: int) -> set[int]:
    """All nodes that wait for that one; what is folded waits for nothing."""
    made, after = {f"t{start}"}, set[int]()
    for number in range(start + 1, len(steps)):
        if made & set(steps[number].reads) and nodes[number].state != "folded":
            after.add(number)
            made |= set(steps[number].makes)
    return after


@given(graphs())
def test_every_node_is_in_one_place(graph: tuple[list[GraphStep], list[NodeAnswer]]) -> None:
    steps, nodes = graph
    whole = partition(steps, nodes)
    inside = [number for segment in whole.segments for number in segment]
    assert sorted(inside) == [number for number, node in enumerate(nodes) if node.state == "runs"]
    assert list(whole.outside) == [number for number, node in enumerate(nodes) if node.state == "unsupported"]
    assert 0 <= whole.flops_share <= 1
    assert (whole.num_crossings == 0) or (whole.outside and whole.segments)


@given(graphs())
def test_no_segment_waits_for_a_node_outside_that_waits_for_it(
    graph: tuple[list[GraphStep], list[NodeAnswer]],
) -> None:
    steps, nodes = graph
    whole = partition(steps, nodes)
    for segment in whole.segments:
        after = set().union(*(followers(steps, nodes, number) for number in segment))
        for outside in after & set(whole.outside):
            assert not followers(steps, nodes, outside) & set(segment)


@given(graphs())
def test_segments_are_connected(graph: tuple[list[GraphStep], list[NodeAnswer]]) -> None:
    steps, nodes = graph
    for segment in partition(steps, nodes).segments:
        reached, waiting = {segment[0]}, [segment[0]]
        while waiting:
            current = waiting.pop()
            for other in set(segment) - reached:
                if set(steps[other].reads) & set(steps[current].makes) or set(steps[current].reads) & set(
                    steps[other].makes
                ):
                    reached.add(other)
                    waiting.append(other)
        assert reached == set(segment)
