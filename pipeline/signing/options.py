"""[sign]: who signs what a run builds, and whose signatures its engines need before they are loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.signing.envelope import public_key
from engines.signing.trust import TRUSTED, trusted_keys
from pipeline.errors import ConfigError
from pipeline.option import option

KEY = "TRTFORGE_SIGNING_KEY"
_BEFORE: dict[str, str] = {}
"""What the environment said before a plan's keys took its place there, by what stands there since."""


@dataclass(frozen=True)
class Sign:
    """[sign]: who signs what a run builds, and whose signatures its engines need before they are loaded."""

    key_env: str = option(KEY, "environment variable with the path of the private key that engines are signed with")
    trusted: tuple[str, ...] = option(
        (), "files of public keys; TensorRT's engines are loaded only if one of them signed them"
    )

    def key(self) -> Path | None:
        """The private key; None if the environment names none.

        Raises:
            ConfigError: it names a file that is not there.
        """
        name = os.environ.get(self.key_env, "") if self.key_env else ""
        if name and not Path(name).is_file():
            raise ConfigError(f"{self.key_env}: {name} does not exist; name the file of a private key, or unset it")
        return Path(name) if name else None


def trust(keys: Sequence[Path]) -> None:
    """From now on this process and those that it starts load TensorRT's engines only if one of the keys signed them.

    Where the environment names keys too, only those of its own count: a plan cannot widen whom a machine trusts.
    Without keys what the environment said holds again.

    Raises:
        NotTrusted: a key is not there, or is something else.
        ConfigError: none of the keys is one that the environment names; or a path cannot stand in the environment.
    """
    now = os.environ.get(TRUSTED, "")
    by_user = _BEFORE.pop(now, now)
    _set(by_user)
    allowed = {key.key_id for key in trusted_keys()}
    trusted = [key for key in map(public_key, keys) if not allowed or key.key_id in allowed]
    if keys and not trusted:
        raise ConfigError(
            f"[sign]: trusted names none of the keys in {TRUSTED} ({by_user}), which has the last word; sign with one "
            "of those, or unset it"
        )
    if split := [key.path for key in trusted if os.pathsep in str(key.path.resolve())]:
        raise ConfigError(f"[sign]: {split[0].resolve()} has a '{os.pathsep}' in its path; put the key elsewhere")
    if trusted:
        paths = os.pathsep.join(str(key.path.resolve()) for key in trusted)
        _BEFORE[paths] = by_user
        _set(paths)


def _set(value: str) -> None:
    if value:
        os.environ[TRUSTED] = value
    else:
        os.environ.pop(TRUSTED, None)


def signing_notes(on_gpus: Sequence[str], key: Path | None) -> list[str]:
    """What the report and the gate say of signatures.

    Args:
        on_gpus: the variants whose engines are code.
        key: that they were signed with.
    """
    if key is not None:
        return [f"All engines are signed with {key.name}."]
    if not on_gpus:
        return []
    return [f"Not signed: {', '.join(on_gpus)}. These engines are code; with {KEY} set, a run signs what it builds."]
