"""Print the completion script of a shell."""

from __future__ import annotations

import click

from pipeline.command.completion import SHELLS, VARIABLE


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print what makes SHELL complete verbs, options, their choices and files of `trtforge`.

    \b
    bash: echo 'eval "$(trtforge completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(trtforge completion zsh)"' >> ~/.zshrc
    fish: trtforge completion fish > ~/.config/fish/completions/trtforge.fish
    """
    root = click.get_current_context().find_root().command
    click.echo(SHELLS[shell](root, {}, "trtforge", VARIABLE).source())
