"""Which schedulers are spoken to, and what is said of certificates that are missing, expired or another fleet's."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, Unavailable
from pipeline.workers.address import SchedulerAddress, Tls, check_reachable, scheduler_from
from tests.pipeline.workers.cluster import certificates


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    pytest.importorskip("cryptography", reason="cryptography is not installed (extra sign), which makes certificates")
    return tmp_path / "pki"


@contextmanager
def server(tls: Mapping[str, str] | None) -> Iterator[str]:
    """A server on loopback that asks for the client's certificate, as `dask scheduler` does, and sends first."""
    context = None
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls["ca"])
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(tls["cert"], tls["key"])
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            plain, _ = listening.accept()
            try:
                with plain if context is None else context.wrap_socket(plain, server_side=True) as stream:
                    stream.sendall(b"hello, which is not TLS\r\n")
            except OSError:
                plain.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def scheduler_at(place: str, tls: Mapping[str, str]) -> SchedulerAddress:
    return scheduler_from(f"tls://{place}", Tls(**tls), Path(), "fleet.toml")


def test_both_sides_are_of_one_fleet(pki: Path) -> None:
    hub, scheduler = certificates(pki, "hub"), certificates(pki / "other", "scheduler", ca=pki)
    with server(scheduler) as place:
        check_reachable(scheduler_at(place, hub))


def test_a_certificate_of_ours_that_has_expired(pki: Path) -> None:
    scheduler, hub = certificates(pki, "scheduler"), certificates(pki / "old", "hub", days=-1, ca=pki)
    with server(scheduler) as place, pytest.raises(ConfigError) as refused:
        check_reachable(scheduler_at(place, hub))
    assert str(refused.value) == (
        f"{hub['cert']}: is refused by tls://{place} (sslv3 alert certificate expired); make a new certificate, signed "
        "by the fleet's CA"
    )


def test_a_certificate_of_the_scheduler_that_has_expired(pki: Path) -> None:
    hub, scheduler = certificates(pki, "hub"), certificates(pki / "old", "scheduler", days=-1, ca=pki)
    with server(scheduler) as place, pytest.raises(Unavailable, match=r"is refused \(certificate has expired\); make"):
        check_reachable(scheduler_at(place, hub))


def test_another_fleets_scheduler(pki: Path) -> None:
    hub, foreign = certificates(pki, "hub"), certificates(pki / "foreign", "scheduler")
    with server(foreign) as place, pytest.raises(Unavailable, match="the scheduler's certificate is refused"):
        check_reachable(scheduler_at(place, hub))


def test_one_that_speaks_no_tls(pki: Path) -> None:
    hub = certificates(pki, "hub")
    with server(None) as place, pytest.raises(Unavailable, match=r"does not speak TLS .*; start it with --tls-ca-file"):
        check_reachable(scheduler_at(place, hub))


def test_nobody_there(pki: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    for address in (scheduler_at(f"127.0.0.1:{port}", certificates(pki, "hub")),
                    scheduler_from(f"tcp://127.0.0.1:{port}", Tls(), Path(), "fleet.toml")):  # fmt: skip
        with pytest.raises(
            Unavailable, match=r"cannot be reached \(Connection refused\); see that `dask scheduler` runs"
        ):
            check_reachable(address)


@pytest.mark.parametrize("text", ["hub", "hub:8786", "tls://hub", "tls://hub:nan", "ucx://hub:8786", "tls://h:1/path"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"\[fleet\] scheduler '.*': is no address; write tls://HOST:PORT"):
        scheduler_from(text, Tls(), Path(), "fleet.toml")


@pytest.mark.parametrize("host", ["hub", "10.0.0.7", "0.0.0.0", "[2001:db8::1]", "127.0.0.1.example.org"])
def test_without_tls_it_is_this_machine_alone(host: str) -> None:
    with pytest.raises(ConfigError, match="whoever reaches it could run commands on all workers; write tls://"):
        scheduler_from(f"tcp://{host}:8786", Tls(), Path(), "fleet.toml")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_loopback_needs_none(host: str) -> None:
    assert scheduler_from(f"tcp://{host}:8786", Tls(), Path(), "fleet.toml").tls is None
    with pytest.raises(ConfigError, match=r"\[fleet\] tls: has an effect only with tls://"):
        scheduler_from(f"tcp://{host}:8786", Tls(ca="ca.pem"), Path(), "fleet.toml")


def test_files_of_tls(pki: Path) -> None:
    """Paths are from the fleet file's folder; each that is missing or unusable is named."""
    tls = certificates(pki, "hub")
    names = {"ca": "ca.pem", "cert": "hub.pem", "key": "hub.key"}
    address = scheduler_from("tls://127.0.0.1:1", Tls(**names), pki, "fleet.toml")
    assert address.tls == Tls(**tls)
    with pytest.raises(ConfigError, match=r"fleet.toml: \[fleet\] tls cert and key: missing"):
        scheduler_from("tls://hub:1", Tls(ca="ca.pem"), pki, "fleet.toml")
    with pytest.raises(ConfigError, match=r"none.pem: does not exist; correct \[fleet\] tls ca in fleet.toml"):
        scheduler_from("tls://hub:1", Tls(**names | {"ca": "none.pem"}), pki, "fleet.toml")
    Path(tls["key"]).chmod(0o644)
    with pytest.raises(ConfigError, match=r"hub.key: others may read this private key; chmod 600 .*hub.key"):
        scheduler_from("tls://hub:1", Tls(**names), pki, "fleet.toml")
    Path(tls["key"]).chmod(0o600)
    (pki / "text.pem").write_text("no certificate")
    for key, sentence in (("ca", "is no certificate in PEM"), ("cert", "is no certificate in PEM with the key")):
        with pytest.raises(ConfigError, match=rf"text.pem: {sentence}"):
            check_reachable(scheduler_from("tls://127.0.0.1:1", Tls(**names | {key: "text.pem"}), pki, "fleet.toml"))
    other = certificates(pki / "other", "hub")
    with pytest.raises(ConfigError, match="with the key"):
        check_reachable(scheduler_from("tls://127.0.0.1:1", Tls(**names | {"key": other["key"]}), pki, "fleet.toml"))
