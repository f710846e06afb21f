"""Where the scheduler is, and whether it is one to speak to: TLS with the fleet's certificates, or this machine."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, Unavailable
from pipeline.option import option

TLS, PLAIN = "tls", "tcp"
CONNECT_SECONDS = 20.0


@dataclass(frozen=True)
class Tls:
    """[fleet] tls: PEM files, from the folder of the fleet file."""

    ca: str = option("", "certificate that all certificates of the fleet are signed by")
    cert: str = option("", "certificate of this machine")
    key: str = option("", "its private key")


@dataclass(frozen=True)
class SchedulerAddress:
    """A scheduler."""

    text: str
    """As the fleet file has it, such as ``tls://hub:8786``."""
    host: str
    port: int
    tls: Tls | None
    """Absolute paths; None: without TLS."""


def scheduler_from(text: str, tls: Tls, folder: Path, where: str) -> SchedulerAddress:
    """The scheduler of a fleet file; nothing is connected.

    Args:
        text: ``tls://HOST:PORT``, or ``tcp://HOST:PORT`` of this machine.
        tls: the table.
        folder: of the fleet file.
        where: the fleet file, for sentences.

    Raises:
        ConfigError: it is no such address, it is another machine's without TLS, or TLS lacks a file.
    """
    parts = urlsplit(text)
    try:
        host, port = parts.hostname or "", parts.port or 0
    except ValueError:
        host, port = "", 0
    if parts.scheme not in (TLS, PLAIN) or not host or not port or parts.path:
        raise ConfigError(f"{where}: [fleet] scheduler '{text}': is no address; write tls://HOST:PORT")
    if parts.scheme == TLS:
        return SchedulerAddress(text, host, port, _files(tls, folder, where))
    if not is_loopback(host):
        raise ConfigError(
            f"{where}: [fleet] scheduler '{text}': whoever reaches it could run commands on all workers; write "
            "tls://, and certificates into [fleet] tls: ca, cert and key (tcp:// is for 127.0.0.1 alone)"
        )
    if tls != Tls():
        raise ConfigError(f"{where}: [fleet] tls: has an effect only with tls://; drop it, or write tls://")
    return SchedulerAddress(text, host, port, None)


def is_loopback(host: str) -> bool:
    """Whether it names this machine, and reaches no network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_reachable(address: SchedulerAddress) -> None:
    """Connect once, as Dask would, for its own sentence on a failure is a time that is up.

    Raises:
        ConfigError: a certificate or key of ours is unusable, or is not accepted there.
        Unavailable: nobody answers, or the scheduler's certificate is not one of the fleet's.
    """
    context = None if address.tls is None else context_from(address.tls)
    try:
        with socket.create_connection((address.host, address.port), CONNECT_SECONDS) as plain:
            if context is not None:
                with context.wrap_socket(plain, server_hostname=address.host) as wrapped:
                    wrapped.recv(1)  # A certificate that is not accepted is refused after the handshake.
    except ssl.SSLCertVerificationError as error:
        raise Unavailable(
            f"{address.text}: the scheduler's certificate is refused ({error.verify_message}); make it a new one, "
            "signed by [fleet] tls ca, and start `dask scheduler` again"
        ) from error
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if "alert" in reason:
            cert = address.tls.cert if address.tls else ""
            raise ConfigError(
                f"{cert}: is refused by {address.text} ({reason}); make a new certificate, signed by the fleet's CA"
            ) from error
        raise Unavailable(f"{address.text}: does not speak TLS ({reason}); start it with --tls-ca-file") from error
    except OSError as error:
        reason = error.strerror or str(error) or "it does not answer"
        raise Unavailable(f"{address.text}: cannot be reached ({reason}); see that `dask scheduler` runs") from error


def context_from(tls: Tls) -> ssl.SSLContext:
    """Both sides are known by the fleet's own CA; names of machines do not matter.

    Raises:
        ConfigError: a file is unusable.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{tls.ca}: is no certificate in PEM ({error.strerror}); correct [fleet] tls ca") from error
    context.check_hostname = False
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"{tls.cert}: is no certificate in PEM with the key {tls.key} ({error}); correct [fleet] tls cert and key"
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("the key has a password, and nobody is there at night to type it")


def _files(tls: Tls, folder: Path, where: str) -> Tls:
    if missing := [name for name in ("ca", "cert", "key") if not getattr(tls, name)]:
        raise ConfigError(
            f"{where}: [fleet] tls {' and '.join(missing)}: missing, a scheduler at tls:// needs all three; write "
            'tls = { ca = "ca.pem", cert = "hub.pem", key = "hub.key" }'
        )
    absolute = Tls(*(str((folder / Path(name).expanduser()).absolute()) for name in (tls.ca, tls.cert, tls.key)))
    for name in ("ca", "cert", "key"):
        file = Path(getattr(absolute, name))
        if not file.is_file():
            raise ConfigError(f"{file}: does not exist; correct [fleet] tls {name} in {where}")
        try:
            file.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror}); correct its owner or mode") from error
    if Path(absolute.key).stat().st_mode & 0o077:
        raise ConfigError(f"{absolute.key}: others may read this private key; chmod 600 {absolute.key}")
    return absolute
