"""Verify signatures of engines and bundles."""

from __future__ import annotations

from pathlib import Path

import click

from engines.errors import NotTrusted
from engines.signing.envelope import public_key
from engines.signing.trust import (
    beside_of,
    check_weights,
    record_digest,
    sha256_of,
    signature_of,
    signed_by,
    trusted_keys,
)
from pipeline.errors import CheckFailed, ConfigError
from pipeline.output import record_to_keep
from pipeline.spelling import echo


@click.command()
@click.argument("files", nargs=-1, required=True, type=Path, metavar="FILE...")
@click.option(
    "--trusted", multiple=True, type=Path, metavar="KEY",
    help="public key that may have signed; may be given again  [default: those in TRTFORGE_TRUSTED]",
)  # fmt: skip
def verify(files: tuple[Path, ...], trusted: tuple[Path, ...]) -> None:
    """Tell of each FILE whether a key that is trusted signed it, and whether it and its record are still the same.

    Exit status 5 if one is not what was signed, 2 if there is no signature by such a key.
    """
    keys = tuple(public_key(path) for path in trusted) or trusted_keys()
    if not keys:
        raise ConfigError("verify: no key is trusted; give --trusted KEY.pub, or set TRTFORGE_TRUSTED")
    changed = []
    for file in files:
        if not file.exists():
            raise ConfigError(f"{file}: does not exist; name an engine or a bundle")
        signature = signature_of(file)
        if signature is None:
            raise ConfigError(
                f"{file}: has no signature ({beside_of(file).name} is not there); sign it, or copy it too"
            )
        signed = signed_by(signature, keys)
        record = record_to_keep(file)
        if sha256_of(file) != signed.sha256:
            changed.append(f"{file}: is not what {signed.key} signed (SHA-256 differs)")
        elif record and record_digest(record) != signed.record:
            changed.append(f"{file}: its record is not what {signed.key} signed with it")
        else:
            try:
                check_weights(file, signed)
            except NotTrusted as error:
                changed.append(str(error).partition(";")[0])
                continue
            echo(f"{file}: signed by {signed.key}")
    if changed:
        raise CheckFailed(f"{'; '.join(changed)}; copy or build again")
