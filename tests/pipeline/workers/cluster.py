"""A hub's scheduler and its workers on loopback, as `dask scheduler` and `dask worker` start them, under TLS."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.source_files import ROOT

WAIT_SECONDS = 180.0
"""For what takes seconds on a machine that is not busy."""


def needs_dask() -> None:
    """Skip, and say so, where the extra is not installed."""
    pytest.importorskip("distributed", reason="distributed is not installed (extra fleet)")
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra fleet)")
    pytest.importorskip("cryptography", reason="cryptography is not installed (extra sign), which makes certificates")


def certificates(folder: Path, name: str, *, days: int = 2, ca: Path | None = None) -> Mapping[str, str]:
    """A certificate for loopback, and its key; of the CA in a folder, or of a new one. The table of [fleet] tls."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir(parents=True, exist_ok=True)
    now = dt.datetime.now(dt.timezone.utc)

    def made(common: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[0] if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=10))
            .not_valid_after(now + dt.timedelta(days=days if issuer else 30))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
        pem, private = folder / f"{common}.pem", folder / f"{common}.key"
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        private.touch(mode=0o600)
        private.write_bytes(key.private_bytes(*plain))
        return pem, private

    home = folder if ca is None else ca
    if ca is None and not (folder / "ca.pem").exists():
        made("ca", None)
    issuer = x509.load_pem_x509_certificate((home / "ca.pem").read_bytes()).subject
    issuer_key = serialization.load_pem_private_key((home / "ca.key").read_bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    pem, private = made(name, (issuer, issuer_key))
    return {"ca": str(home / "ca.pem"), "cert": str(pem), "key": str(private)}


@dataclass
class Cluster:
    """The processes, and where they are."""

    folder: Path
    tls: Mapping[str, str]
    address: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def depot(self) -> Path:
        """The folder that all of them reach."""
        return self.folder / "depot"

    def start(self, name: str, *arguments: str, root: Path = ROOT) -> None:
        """Start `dask` with these arguments; its home is a folder of its name."""
        (self.folder / name).mkdir(exist_ok=True)
        flags = {"--tls-ca-file": "ca", "--tls-cert": "cert", "--tls-key": "key"}
        tls = [part for flag, key in flags.items() for part in (flag, self.tls[key])] if self.tls else []
        environment = {**os.environ, "HOME": str(self.folder / name), "PYTHONPATH": str(root)}
        environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "1"
        environment["XDG_CACHE_HOME"] = str(self.folder / name / "cache")
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, *tls, "--no-dashboard"],
                cwd=self.folder / name,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def start_worker(self, name: str, device: str, root: Path = ROOT) -> None:
        """A worker that has the device's tag; ``root``: of the program that it runs."""
        tags = ("--resources", f"{device}=1", "--nthreads", "1", "--host", "127.0.0.1", "--name", name)
        self.start(name, "worker", self.address, *tags, "--local-directory", str(self.folder / name), root=root)

    def worker_pid(self, name: str) -> int:
        """Of the process that does the work, which its nanny started."""
        import psutil

        children = psutil.Process(self.processes[name].pid).children()
        (pid,) = [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
        return int(pid)

    def kill_worker(self, name: str) -> None:
        """As a machine that loses its power, but that the nanny starts another one."""
        os.kill(self.worker_pid(name), signal.SIGKILL)

    def stop(self, name: str) -> None:
        """End it for good."""
        process = self.processes.pop(name)
        process.terminate()
        process.wait()


def wait_for(what: str, condition: object) -> None:
    """Until it is true."""
    assert callable(condition)
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < WAIT_SECONDS, what
        time.sleep(0.05)


@contextmanager
def cluster_in(folder: Path, workers: Mapping[str, str], tls: Mapping[str, str]) -> Iterator[Cluster]:
    """A scheduler with these workers (name -> device), which are there."""
    cluster = Cluster(folder, tls)
    cluster.depot.mkdir()
    file = folder / "scheduler.json"
    protocol = "tls" if tls else "tcp"
    try:
        cluster.start("hub", "scheduler", "--host", f"{protocol}://127.0.0.1", "--port", "0",
                      "--scheduler-file", str(file))  # fmt: skip
        wait_for("the scheduler", file.exists)
        cluster.address = json.loads(file.read_text())["address"]
        for name, device in workers.items():
            cluster.start_worker(name, device)
        log = folder / "hub.log"
        wait_for("the workers", lambda: log.read_text().count("Register worker") >= len(workers))
        yield cluster
    finally:
        for name in [name for name in cluster.processes if name != "hub"]:
            cluster.processes[name].terminate()
        for name in reversed([*cluster.processes]):
            cluster.stop(name)
