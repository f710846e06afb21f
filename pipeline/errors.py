"""One table: error type -> exit status -> who must act.

Form of every message: *where: what is, against what was expected; what to do*.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from calibration.errors import DataError, ModelError
from engines.errors import EngineError, NotTrusted, OutOfMemory, Unavailable


class ConfigError(Exception):
    """The plan or the command is wrong. Whoever wrote it acts."""


class StageError(Exception):
    """The tool below a stage failed on this model; its own error is ``__cause__``, or the message quotes it."""


class NothingQuantized(ModelError):
    """No convolution or matrix product of the model can be INT8, or all were excluded."""


class ProcessDied(StageError):
    """A process of its own ended without an answer."""

    may_be_memory = False
    """Whether a signal ended it: the system's kill when memory runs out, or a crash in native code."""


class CheckFailed(Exception):
    """It ran, and accuracy, agreement or latency is out of bounds. Nobody has to fix the tool."""


class NotDecided(Exception):
    """It ran, and cannot be decided here: the machine is too noisy, the samples too few, or something has no sensor."""


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a file cannot grow: disk, quota, or the largest file that a process may write."""

WRONG_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system says of a path that cannot be opened or written: whoever named it acts."""

EXIT_STATUS: dict[type[Exception], int] = {
    ConfigError: 2,
    DataError: 2,
    NotTrusted: 2,
    Unavailable: 3,
    StageError: 4,
    ModelError: 4,
    EngineError: 4,
    CheckFailed: 5,
    NotDecided: 6,
}
"""Anything that is not listed is a bug of ours and keeps its traceback (status 1)."""


@contextmanager
def as_sentences() -> Iterator[None]:
    """Raise ConfigError of a path that cannot be one, and Unavailable of a full disk, where OSError comes of them."""
    try:
        yield
    except OSError as error:
        if error.errno in WRONG_PATH and error.filename is not None:
            name = os.fsdecode(error.filename)
            raise ConfigError(f"{name}: cannot be used ({error.strerror}); correct the path") from error
        if error.errno in FULL_DISK:
            raise Unavailable(f"no more can be written ({error.strerror}); free some space and run again") from error
        raise


def exit_status(error: BaseException) -> int:
    """The exit status for an error: the table's, or 1 for a bug of ours."""
    for kind, status in EXIT_STATUS.items():
        if isinstance(error, kind):
            return status
    return 1


__all__ = [
    "EXIT_STATUS",
    "FULL_DISK",
    "WRONG_PATH",
    "CheckFailed",
    "ConfigError",
    "DataError",
    "EngineError",
    "ModelError",
    "NotDecided",
    "NotTrusted",
    "NothingQuantized",
    "OutOfMemory",
    "ProcessDied",
    "StageError",
    "Unavailable",
    "as_sentences",
    "exit_status",
]
