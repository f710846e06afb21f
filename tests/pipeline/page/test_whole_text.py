"""A text where the user wants it: whole, in a folder that need not be there, and a sentence where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.page.whole_text import put_text


def test_it_takes_the_place_of_another_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    for text in ("first – page", "second"):
        put_text(text, target)
        assert target.read_text(encoding="utf-8") == text
        assert list(target.parent.iterdir()) == [target]


def test_where_it_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"page\.html: cannot be written"):
        put_text("page", tmp_path / "file" / "page.html")
