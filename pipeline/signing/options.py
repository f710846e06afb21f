"""[sign]: who signs what a run builds, and whose signatures its engines need before they are loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.signing.trust import TRUSTED
from pipeline.errors import ConfigError
from pipeline.option import option

KEY = "TRTFORGE_SIGNING_KEY"
AT_FIRST = os.environ.get(TRUSTED, "")
"""What the user's environment trusts."""


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

    Without keys what the environment said when the process began holds again.
    """
    asked = os.pathsep.join(str(key.resolve()) for key in keys) or AT_FIRST
    if asked:
        os.environ[TRUSTED] = asked
    else:
        os.environ.pop(TRUSTED, None)
