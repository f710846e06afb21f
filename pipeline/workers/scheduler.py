"""The Dask scheduler: who is connected to it, and an executor for each device; the one file that knows Dask."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.errors import Unavailable
from pipeline.workers.address import SchedulerAddress, check_reachable
from pipeline.workers.task import Request, asked, run_request, stopped

INSTALL = "a scheduler needs Dask, which is not installed; pip install 'trtforge[fleet]'"
LOOK_SECONDS = 2.0
"""Between two looks at which workers are there."""


class Hub:
    """A connection to the scheduler."""

    def __init__(self, client: Any, address: SchedulerAddress) -> None:
        """``client``: of Dask, connected."""
        self._client, self.address = client, address
        self._asked: dict[Future[str], str] = {}
        self._mark = uuid.uuid4().hex

    def workers(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Every worker: its address -> its name, and the devices that it has a tag of.

        Raises:
            Unavailable: the scheduler is gone.
        """
        try:
            listed = self._client.scheduler_info(n_workers=-1)["workers"]
        except Exception as error:  # Comm errors, time that is up, and a client that closed itself.
            raise self._gone(error) from error
        return {key: (str(row.get("name")), tuple(row.get("resources", {}))) for key, row in listed.items()}

    def ask(self, request: Request, addresses: list[str]) -> dict[str, dict[str, Any] | Exception]:
        """The answers of these workers, or why one cannot answer; they are asked at once, beside what they work on.

        Raises:
            Unavailable: the scheduler is gone.
        """
        text = json.dumps(request)
        try:
            answers = self._client.run(asked, text, workers=addresses, on_error="return")
        except Exception as error:
            raise self._gone(error) from error
        return {key: answer if isinstance(answer, Exception) else _read(answer) for key, answer in answers.items()}

    def submit(self, device: str, request: Request) -> Future[str]:
        """``run_request`` on a worker that has this tag, alone on it.

        A worker that dies is no end of it: it begins anew there or on another one.
        """
        executor: Executor = self._client.get_executor(resources={device: 1}, pure=False)
        text = json.dumps(request | {"hub": self._mark})
        future: Future[str] = executor.submit(run_request, text)
        self._asked[future] = text
        return future

    def stop(self) -> None:
        """End what was asked for and is not done: nothing more begins, and what workers are at work on is killed."""
        asked_for = {future: request for future, request in self._asked.items() if not future.done()}
        for future in asked_for:
            future.cancel()
        with suppress(Exception):  # The scheduler may be what is gone; a worker of an earlier version knows no stop.
            self._client.run(stopped, list(asked_for.values()), on_error="ignore")

    def as_done(self, futures: Mapping[Future[str], str], patience_s: float) -> Iterator[tuple[Future[str], bool]]:
        """Each future as it is done, and whether no worker has had its device for so long that it was given up.

        Args:
            futures: and the device of each.
            patience_s: how long a device may be away, in seconds.

        Raises:
            Unavailable: the scheduler is gone.
        """
        pending, seen = dict(futures), dict.fromkeys(futures.values(), time.monotonic())
        while pending:
            done, _ = wait(pending, LOOK_SECONDS, FIRST_COMPLETED)
            for future in done:
                del pending[future]
                yield future, False
            if done:
                continue
            here = {tag for _, tags in self.workers().values() for tag in tags}
            seen.update(dict.fromkeys(here & set(seen), time.monotonic()))
            for future, device in list(pending.items()):
                if time.monotonic() - seen[device] > patience_s:
                    future.cancel()
                    del pending[future]
                    yield future, True

    def _gone(self, error: Exception) -> Unavailable:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return Unavailable(f"{self.address.text}: the scheduler is gone ({reason}); start it, and run again")


def _read(text: str) -> dict[str, Any] | Exception:
    """An answer, or that it is none: what a worker's process prints beside it stands in it too."""
    with suppress(ValueError, RecursionError):
        if isinstance(answer := json.loads(text), dict):
            return answer
    return ValueError(f"it answers {text[:100]!r}")


def is_killed(error: BaseException) -> bool:
    """Whether the scheduler gave a function up, since workers died while they had it."""
    from distributed import KilledWorker

    return isinstance(error, KilledWorker)


@contextmanager
def connected(address: SchedulerAddress) -> Iterator[Hub]:
    """A connection to the scheduler.

    Raises:
        ConfigError: our certificate is unusable, or is not accepted there.
        Unavailable: Dask is not installed, or the scheduler does not answer.
    """
    try:
        from distributed import Client
        from distributed.security import Security
    except ImportError as error:
        raise Unavailable(INSTALL) from error
    check_reachable(address)
    tls = address.tls
    security = None
    if tls is not None:
        files = {"tls_ca_file": tls.ca, "tls_client_cert": tls.cert, "tls_client_key": tls.key}
        security = Security(require_encryption=True, **files)
    client = _made(lambda: Client(address.text, security=security, timeout="30s", set_as_default=False), address)
    hub = Hub(client, address)
    try:
        yield hub
    except BaseException:
        hub.stop()
        raise
    finally:
        close(client)


def close(client: Any) -> None:
    """Leave the scheduler; a night whose lines are done is not lost where that takes too long on a busy machine."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # It tells of answers that nobody waits for any more.
    with suppress(Exception):
        client.close(timeout=5)


def _made(make: Callable[[], Any], address: SchedulerAddress) -> Any:
    try:
        return make()
    except Exception as error:  # Of the network, of TLS, of versions that do not fit.
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise Unavailable(f"{address.text}: does not answer as a Dask scheduler ({reason}); see its log") from error
