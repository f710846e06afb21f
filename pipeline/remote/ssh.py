"""OpenSSH's own client, with the user's configuration and keys: how it is called, and what it means when it ends."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError, Unavailable
from pipeline.spelling import shown

VARIABLE = "TRTFORGE_SSH"
"""The command to use instead of ``ssh``, with options, as a shell reads it: ``ssh -F my_config``."""
ADDRESS = re.compile(r"[^\s,;'\"\\$`(){}<>|&*?!#~\[\]^-][^\s,;'\"\\$`(){}<>|&*?!#~^]*")
ALIVE_SECONDS, ALIVE_COUNT, CONNECT_SECONDS = 15, 4, 30
"""For users whose configuration says nothing of it: so a connection that is dead is known to be dead."""
MOST_SENTENCE = 300

TELLING = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that known_hosts has: it was installed anew, or somebody stands in between; "
        "compare the keys, and then remove the old one: {remove}",
    ),
    (r"host key is known for .*strict|Host key verification failed", "its host key is not known here; {once}"),
    (
        r"Permission denied|Too many authentication failures|no mutual signature|No more authentication methods",
        "does not let this user in by a key ({line}); put your key there, ssh-copy-id {address}, or start ssh-agent",
    ),
    (
        r"Could not resolve hostname|Name or service not known|nodename nor servname",
        "no machine of that name is known ({line}); correct --on, or write the name into ~/.ssh/config",
    ),
    (
        r"Connection refused|timed out|No route to host|Network is unreachable|Host is down",
        "cannot be reached ({line}); see that it is on and runs sshd",
    ),
    (
        r"[Bb]ad configuration option|[Uu]nsupported option|Can't open user config file|[Bb]ad owner or permissions on|"
        r"unknown option|illegal option|keyword .* extra arguments|missing argument",
        "ssh does not take its configuration ({line}); correct it",
    ),
)
"""What stands on ssh's stderr -> what to say; the first that fits."""
OLD_KEY = re.compile(r"Offending \S+ key in (.+):[0-9]+\s*$"), re.compile(r"Host key for (\S+) has changed")
"""In which file the other key is, and under which name: that of the machine itself, with its port, for an alias."""


@dataclass(frozen=True)
class Destination:
    """Where a plan is built."""

    address: str
    """As ssh takes it: ``user@host``, or a name of ~/.ssh/config."""

    @property
    def name(self) -> str:
        """As part of a file's name."""
        return re.sub(r"[^A-Za-z0-9_.@-]+", "-", self.address)


def destinations_from(texts: tuple[str, ...], option: str = "--on") -> tuple[Destination, ...]:
    """Those of an option that may be repeated, and have several with commas between.

    Raises:
        ConfigError: one is no address, or stands there twice.
    """
    addresses = [part.strip() for text in texts for part in text.split(",")]
    for address in addresses:
        if not ADDRESS.fullmatch(address) or not address.isprintable():
            raise ConfigError(
                f"{option} '{address}': is no address for ssh; write user@host, or a name of ~/.ssh/config"
            )
        if addresses.count(address) > 1:
            raise ConfigError(f"{option} '{address}': is there twice; name each machine once")
    names = [Destination(address).name for address in addresses]
    for address, name in zip(addresses, names):
        if names.count(name) > 1:
            raise ConfigError(f"{option} '{address}': another address gives a folder of the same name; use an alias")
    return tuple(map(Destination, addresses))


def client() -> list[str]:
    """The command.

    Raises:
        ConfigError: the environment's variable is no command.
    """
    try:
        command = shlex.split(os.environ.get(VARIABLE, "ssh"))
    except ValueError as error:
        raise ConfigError(f"{VARIABLE}: is no command ({error}); write for example ssh -F my_config") from error
    if not command:
        raise ConfigError(f"{VARIABLE}: is empty; write for example ssh -F my_config, or unset it")
    return command


def command_for(destination: Destination, remote: str, *, ask: bool) -> list[str]:
    """The command line that runs ``remote`` there.

    Args:
        destination: where.
        remote: for the login shell there.
        ask: whether ssh may ask the user for a password, on the terminal.

    Raises:
        Unavailable: there is no ssh client, or it does not take its configuration.
    """
    command = client()
    try:
        done = subprocess.run(
            [*command, "-G", "--", destination.address], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        raise Unavailable(
            f"{command[0]}: cannot be run ({error.strerror}); sudo apt install openssh-client, or name a client with "
            f"{VARIABLE}"
        ) from error
    if done.returncode:
        raise broken(destination, done.stderr.decode("utf-8", "replace"), "")
    effective = dict(line.split(" ", 1) for line in done.stdout.decode("utf-8", "replace").splitlines() if " " in line)
    options = [] if ask else ["-o", "BatchMode=yes"]
    if effective.get("serveraliveinterval", "0") == "0":
        options += ["-o", f"ServerAliveInterval={ALIVE_SECONDS}", "-o", f"ServerAliveCountMax={ALIVE_COUNT}"]
    if effective.get("connecttimeout", "none") == "none":
        options += ["-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    return [*command, "-T", *options, "--", destination.address, remote]


def broken(destination: Destination, stderr: str, phase: str) -> Unavailable:
    """Why a connection came to nothing, from what ssh wrote on stderr.

    Args:
        destination: whereto.
        stderr: all of it.
        phase: what was being done over the connection; empty if there was none yet.
    """
    lines = [shown(line.strip()) for line in stderr.splitlines() if line.strip()]
    address = destination.address
    for pattern, sentence in () if phase else TELLING:
        if re.search(pattern, stderr):
            line = next((line for line in reversed(lines) if re.search(pattern, line)), "")[:MOST_SENTENCE]
            once = f"connect once by hand and compare it: ssh {address}"
            words = sentence.format(
                line=line.replace("\t", " "), address=address, once=once, remove=_removal_of_old_key(address, lines)
            )
            return Unavailable(f"{address}: {words}")
    last = f" ({lines[-1][:MOST_SENTENCE]})" if lines else ""
    if not phase:
        return Unavailable(
            f"{address}: the connection ended before anything began{last}; see that `ssh {address} true` works"
        )
    return Unavailable(
        f"{address}: the connection broke while {phase}{last}; the same command goes on where this ended"
    )


def _removal_of_old_key(address: str, lines: Sequence[str]) -> str:
    """The command, from what ssh says of the key that it had."""
    places = [match[1] for line in lines if (match := OLD_KEY[0].search(line))]
    names = [match[1] for line in lines if (match := OLD_KEY[1].search(line))]
    file = ["-f", places[-1]] if places else []
    return shlex.join(["ssh-keygen", *file, "-R", names[-1] if names else address.rpartition("@")[2]])
