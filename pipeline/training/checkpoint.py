"""A training that was interrupted goes on after its last whole epoch.

Beside the folders of work there is one for each training, named by all that its result depends on; a lock says that
somebody works there. A state is written aside and renamed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calibration.ranges.folder_lock import FolderLock
from engines.torch_graph.library import load_torch
from pipeline.output import TRAINING

STATE_FILE = "state.pt"

log = logging.getLogger(__name__)


class EpochCheckpoint:
    """The folder of one training. Without it, where it cannot be made or another has it, nothing is kept."""

    def __init__(self, parent: Path, key: str) -> None:
        """``key``: a word for all that the result depends on."""
        self._folder = parent / f"{TRAINING}{key}"
        self._lock = FolderLock(self._folder)

    def load(self, restore: Callable[[Mapping[str, Any]], None]) -> int:
        """Give the last state that is whole to ``restore``; its epoch, 0 if there is none."""
        file = self._folder / STATE_FILE
        if not file.is_file() or not self._lock.is_ours():
            return 0
        try:
            state = load_torch().load(file, weights_only=True, map_location="cpu")
            epoch = int(state["epoch"])
            restore(state["state"])
        except Exception as error:  # noqa: BLE001  # Of a damaged file anything may come, and all is begun anew.
            log.warning("%s: is left out, the training begins anew (%s)", file, " ".join(str(error).split()))
            return 0
        log.info("%s: goes on after epoch %d", self._folder, epoch)
        return epoch

    def save(self, epoch: int, dump: Callable[[], Mapping[str, Any]]) -> None:
        """Keep the state after an epoch."""
        try:
            self._folder.mkdir(exist_ok=True)
            if self._lock.is_ours():
                aside = self._folder / f"{STATE_FILE}.part"
                load_torch().save({"epoch": epoch, "state": dict(dump())}, aside)
                aside.rename(self._folder / STATE_FILE)
        except (OSError, RuntimeError) as error:  # torch raises the latter on a full disk.
            log.warning("%s: the training so far cannot be kept (%s)", self._folder, error)

    def close(self, *, is_done: bool) -> None:
        """Let others have it; what is done needs it no more."""
        self._lock.close(is_done=is_done)
