"""Completion in bash, zsh and fish, by click: verbs, options and their choices; where none fits, names of files."""

from __future__ import annotations

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

VARIABLE = "_TRTFORGE_COMPLETE"
"""Where a shell asks for completions, in the environment of the command."""


class _Files(ShellComplete):
    """Paths are arguments of most verbs."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """click's, or that the shell is to complete the name of a file."""
        items = super().get_completions(args, incomplete)
        return items or ([] if incomplete.startswith("-") else [CompletionItem(incomplete, type="file")])


class _Bash(_Files, BashComplete):
    pass


class _Zsh(_Files, ZshComplete):
    pass


class _Fish(_Files, FishComplete):
    pass


SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def add_shells() -> None:
    """Let click answer the shells by these classes."""
    for name, kind in SHELLS.items():
        add_completion_class(kind, name)
