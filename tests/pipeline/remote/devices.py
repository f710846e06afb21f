"""A real sshd on this machine, of this user, with a home of its own for what logs in: a device to build on."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SSHD = next((path for path in ("/usr/sbin/sshd", shutil.which("sshd") or "") if path and Path(path).exists()), "")
HAS_CLIENT = bool(shutil.which("ssh") and shutil.which("ssh-keygen"))

needs_sshd = pytest.mark.skipif(
    not (SSHD and HAS_CLIENT), reason="there is no sshd, or no ssh; sudo apt install openssh-server openssh-client"
)

SECONDS = 60.0


@dataclass
class Device:
    """A running sshd, and how it is reached."""

    folder: Path
    port: int
    server: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def home(self) -> Path:
        """Of whoever logs in."""
        return self.folder / "home"

    @property
    def ours(self) -> Path:
        """All that `--on` leaves there."""
        return self.home / ".trtforge"

    def start(self, most_file_kib: int = 0) -> None:
        """Start sshd, and wait until it answers; whoever logs in writes no larger files than that."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            if most_file_kib:
                command = ["bash", "-c", f'ulimit -f {most_file_kib}; exec "$@"', "bash", *command]
            self.server = subprocess.Popen(command, stdout=log, stderr=log)
        began = time.monotonic()
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            log_text = (self.folder / "sshd.log").read_text()
            assert self.server.poll() is None, log_text
            assert time.monotonic() - began < SECONDS, log_text
            time.sleep(0.02)

    def stop(self) -> None:
        """End it; connections that are open stay."""
        if self.server is not None:
            self.server.terminate()
            self.server.wait()
            self.server = None

    def cut(self) -> None:
        """Break every connection, as a cable that is pulled."""
        assert self.server is not None
        for pid in _children(self.server.pid):
            for child in (*_children(pid), pid):
                if b"sshd" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, signal.SIGKILL)

    def set(self, text: str) -> None:
        """What logs in has these variables too: a line such as ``A=b``."""
        file = self.folder / "sshd_config"
        file.write_text(file.read_text().replace("SetEnv ", f"SetEnv {text} ", 1))
        self.stop()
        self.start()


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def key(path: Path) -> None:
    """A key without a passphrase."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@contextmanager
def device_in(folder: Path, *aliases: str) -> Iterator[Device]:
    """An sshd with a host key, a configuration and authorized keys of its own, and a client's configuration for it.

    ``aliases``: names of the same device, beside ``orin``.
    """
    folder.chmod(0o700)
    (folder / "home").mkdir()
    (folder / "tmp").mkdir()
    for name in ("host_key", "user_key"):
        key(folder / name)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    port = free_port()
    home, bin_folder = folder / "home", Path(sys.executable).parent
    path = f"{bin_folder}:/usr/local/bin:/usr/bin:/bin"
    (folder / "sshd_config").write_text(
        f"""Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HOME={home} PATH={path} TMPDIR={folder}/tmp XDG_CACHE_HOME={home}/.cache
"""
    )
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    (folder / "ssh_config").write_text(
        f"""Host {" ".join(("orin", *aliases))}
HostName 127.0.0.1
Port {port}
User {getpass.getuser()}
IdentityFile {folder}/user_key
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
"""
    )
    device = Device(folder, port)
    device.start()
    try:
        yield device
    finally:
        device.stop()


def client_of(device: Device) -> str:
    """The value of TRTFORGE_SSH."""
    return shlex.join(["ssh", "-F", str(device.folder / "ssh_config")])
