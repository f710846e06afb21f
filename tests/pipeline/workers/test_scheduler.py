"""The connection to a scheduler, when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.strict import record_from_table
from pipeline.workers.address import Tls, scheduler_from
from pipeline.workers.scheduler import connected
from tests.pipeline.workers.cluster import cluster_in, needs_dask


def test_a_connection_that_is_slow_to_end_loses_no_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_dask()
    import distributed

    ends = distributed.Client.close

    def late(client: object, timeout: float) -> None:
        ends(client, timeout=timeout)
        raise TimeoutError(f"timed out after {timeout} s.")

    with cluster_in(tmp_path, {}, {}) as cluster:
        address = scheduler_from(cluster.address, record_from_table({}, Tls, "tls"), tmp_path, "fleet.toml")
        with monkeypatch.context() as patch:
            patch.setattr(distributed.Client, "close", late)
            with connected(address) as hub:
                assert hub.workers() == {}
