"""The summary for a pull request, and the terminal's table."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from pipeline.gate.budget import budget_from_text
from pipeline.gate.checks import UNQUIET, withhold_decision
from pipeline.gate.summary import headline, numbers_of, print_gate, reasons, summary_from_gate
from tests.pipeline.gate.made_gate import FAILED, OPEN, PASSED, made_gate


def test_the_summary_is_a_table_with_reasons_below() -> None:
    lines = summary_from_gate(made_gate(PASSED, FAILED, OPEN)).splitlines()
    assert lines[0] == "### ❌ int8@onnxruntime must not ship"
    rows = [line for line in lines if line.startswith("|")]
    assert rows[2] == r"| p99\_ms at batch 8 \<= 12 | 11.25 ms | 11.00 to 11.50 | ✅ pass |"
    assert rows[3] == r"| p50\_ms at batch 1 \<= 1.03 x baseline | 1.120 x | 1.100 to 1.140 | ❌ fail |"
    assert rows[4] == r"| energy\_mj at batch 1 \<= 30 | – | – | ⚠️ not decided |"
    assert all(row.count(" | ") == 3 for row in rows[2:])
    assert r"- p50\_ms at batch 1 is 1.120 x the baseline's (99 % interval 1.100 to 1.140), above 1.03" in lines
    assert r"- a note with a \| in it" in lines
    assert "Baseline: last-good, set 2025-12-24." in lines[-1]


def test_names_are_no_markup() -> None:
    named = replace(made_gate(PASSED), candidate="[a](b) &lt; ~~c~~ $d$ <e> `f` *g* h_i|j")
    title = summary_from_gate(named).splitlines()[0]
    assert title == r"### ✅ \[a\](b) \&lt; \~\~c\~\~ \$d\$ \<e\> \`f\` \*g\* h\_i\|j may ship"


def test_headlines() -> None:
    assert headline(made_gate(PASSED)) == "int8@onnxruntime may ship"
    assert headline(made_gate(PASSED, OPEN)) == "int8@onnxruntime is not decided"
    assert headline(made_gate(OPEN, FAILED)) == "int8@onnxruntime must not ship"


def test_reasons_are_what_did_not_pass_with_what_to_do() -> None:
    assert reasons(made_gate(PASSED)) == []
    assert reasons(made_gate(PASSED, OPEN)) == [f"{OPEN.sentence}; {OPEN.advice}"]


def test_the_same_reason_twice_is_said_once() -> None:
    assert reasons(made_gate(OPEN, OPEN)) == [f"{OPEN.sentence}; {OPEN.advice}"]


def test_a_noisy_machine_is_said_once() -> None:
    noise = ("other programs took 76% of the CPU time",)
    spoilt = [withhold_decision(check, budget_from_text(check.budget, ""), noise) for check in (PASSED, FAILED)]
    said = reasons(made_gate(*spoilt, OPEN))
    assert said == [
        f"this machine was too noisy to decide 2 budgets: {noise[0]}; reduce the load on this machine and gate "
        "again. Measured "
        f"nevertheless: {PASSED.sentence}; {FAILED.sentence}",
        f"{OPEN.sentence}; {OPEN.advice}",
    ]
    assert reasons(made_gate(spoilt[0])) == [
        f"{PASSED.sentence}{UNQUIET}{noise[0]}; reduce the load on this machine and gate again"
    ]


def test_numbers_without_an_end() -> None:
    assert numbers_of(replace(PASSED, high=None)) == ("11.25 ms", "11.00 to –")
    assert numbers_of(replace(PASSED, low=11.25, high=11.25)) == ("11.25 ms", "exact")


def test_the_terminal_shows_every_budget_in_80_columns() -> None:
    stream = io.StringIO()
    print_gate(made_gate(PASSED, FAILED, OPEN), Console(file=stream, width=80))
    said = stream.getvalue()
    assert max(map(len, said.splitlines())) <= 80
    assert "11.25 ms" in said
    assert "not decided" in said
    assert said.rstrip().endswith("int8@onnxruntime must not ship")


def test_an_engine_other_than_the_candidate_is_named() -> None:
    other = replace(PASSED, variant="fp16@onnxruntime")
    assert r"12 (fp16@onnxruntime)" in summary_from_gate(made_gate(other))
