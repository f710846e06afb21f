"""The nearest of the names there are; control characters out of names are shown, never obeyed."""

from __future__ import annotations

import pytest
from rich.table import Table
from rich.text import Text

from pipeline.spelling import echo, nearest, shown, some_of, table_console, with_and

EVIL = "\x1b]0;owned\x07[red]"


def test_nearest_offers_one_name_and_lists_all() -> None:
    assert nearest("fp61", ["fp32", "fp16"]) == "; did you mean 'fp16'? known: fp32, fp16"
    assert nearest("xyz", ("fp32", "fp16")) == "; known: fp32, fp16"


def test_control_characters_are_spelt_out() -> None:
    assert shown(EVIL) == "\\x1b]0;owned\\x07[red]"
    assert shown("größe\tµ\n") == "größe\tµ\n"
    assert shown("\x9b") == "\\x9b"


def test_sentences_and_tables_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    echo(EVIL)
    echo(EVIL, err=True)
    console = table_console()
    table = Table("tensor", title=Text(EVIL))
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    console.print(table)
    console.print(EVIL)
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "\x07" not in said.out + said.err
    assert said.out.count("owned") == 5
    assert said.out.splitlines()[-1] == "\\x1b]0;owned[red]", "names are no markup"


def test_of_many_names_the_first_are_named_and_the_others_counted() -> None:
    names = [f"m{number:03d}" for number in range(62)]
    assert some_of(names[:3]) == "m000, m001, m002"
    assert some_of(names).endswith("m058, m059 and 2 more")
    assert some_of(names, 2) == "m000, m001 and 60 more"
    assert nearest("m00", names).endswith("m059 and 2 more")


@pytest.mark.parametrize(("names", "words"), [("a", "a"), ("ab", "a and b"), ("abc", "a, b and c"), ("", "")])
def test_names_as_a_sentence_has_them(names: str, words: str) -> None:
    assert with_and(tuple(names)) == words
