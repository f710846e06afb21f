"""Sign engines and bundles."""

from __future__ import annotations

import json
from pathlib import Path

import click

from engines.signing import envelope
from pipeline.command.options import needed
from pipeline.errors import ConfigError
from pipeline.signing.statement import sign_file
from pipeline.spelling import echo


@click.command()
@click.argument("files", nargs=-1, type=Path, metavar="FILE...")
@click.option("--key", type=Path, envvar="TRTFORGE_SIGNING_KEY", show_envvar=True, help="private key, Ed25519 in PEM")
@click.option("--gate", type=Path, help="gate.json of the gate that the engine passed; its decision is signed too")
@click.option("--new-key", type=Path, metavar="FILE", help="make a private key, and beside it FILE.pub, and end")
def sign(files: tuple[Path, ...], key: Path | None, gate: Path | None, new_key: Path | None) -> None:
    """Sign engines or bundles: FILE.dsse.json is written beside each.

    It holds an in-toto statement in a DSSE envelope: the SHA-256 of the file and of its record, what it was made from,
    with which versions, and what its gate decided.
    """
    if new_key is not None:
        _make_key(new_key)
        return
    if not files:
        raise ConfigError("sign: no file is named; give an engine or a bundle, or --new-key FILE")
    private = needed(key, "--key", "name a private key; `trtforge sign --new-key release.key` makes one")
    decision = None if gate is None else _gate(gate)
    for file in files:
        if not file.exists():
            raise ConfigError(f"{file}: does not exist; name an engine or a bundle")
        echo(sign_file(file, private, decision))


def _make_key(private: Path) -> None:
    public = envelope.new_key(private)
    echo(f"{private}: keep it secret; who has it can sign")
    echo(f"{public}: give it to those who verify ([sign] trusted, or TRTFORGE_TRUSTED)")


def _gate(file: Path) -> dict[str, object]:
    try:
        gate = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read as a gate's record ({error}); name a gate.json") from error
    if not isinstance(gate, dict) or "engines" not in gate:
        raise ConfigError(f"{file}: is no gate's record; name a gate.json")
    return gate
