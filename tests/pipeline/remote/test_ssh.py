"""How OpenSSH's client is called, and what is said when it ends: against a real sshd where there is one."""

from __future__ import annotations

import getpass
import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, Unavailable
from pipeline.remote.session import Session
from pipeline.remote.ssh import VARIABLE, Destination, broken, client, command_for, destinations_from
from tests.pipeline.remote.conftest import ORIN
from tests.pipeline.remote.devices import Device, client_of, key, needs_sshd


@pytest.fixture
def config(orin: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A configuration of the test's own, used as the user's."""
    file = tmp_path / "config"
    file.write_text((orin.folder / "ssh_config").read_text())
    monkeypatch.setenv(VARIABLE, f"ssh -F {file}")
    return file


def why_not(destination: Destination = ORIN) -> str:
    """The sentence of a connection that comes to nothing."""
    session = Session(destination, "", ask=False)
    with pytest.raises(Unavailable) as error:
        session.connect()
    session.close()
    assert "\n" not in str(error.value)
    return str(error.value)


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@needs_sshd
def test_it_connects_with_the_users_configuration(config: Path) -> None:
    session = Session(ORIN, "", ask=False)
    hello = session.connect()
    session.close()
    assert hello["home"].endswith("/home/.trtforge")
    assert tuple(hello["python"]) >= (3, 8)


@needs_sshd
def test_a_host_key_that_changed(config: Path, tmp_path: Path, orin: Device) -> None:
    """It stands under the machine's own name and port, not under the alias, and what is said removes it."""
    key(tmp_path / "other")
    public = (tmp_path / "other.pub").read_text()
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{orin.port} {public}")
    change(config, f"{orin.folder}/known_hosts", str(tmp_path / "known_hosts"))
    sentence, _, removal = why_not().rpartition(": ")
    assert sentence == (
        "orin: its host key is not the one that known_hosts has: it was installed anew, or somebody stands in between; "
        "compare the keys, and then remove the old one"
    )
    assert removal == f"ssh-keygen -f {tmp_path / 'known_hosts'} -R '[127.0.0.1]:{orin.port}'"
    subprocess.run(shlex.split(removal), check=True, capture_output=True)
    assert why_not() == "orin: its host key is not known here; connect once by hand and compare it: ssh orin"


def test_a_key_that_changed_by_an_ssh_that_does_not_say_where() -> None:
    said = "REMOTE HOST IDENTIFICATION HAS CHANGED!"
    assert str(broken(Destination("me@orin"), said, "")).endswith("remove the old one: ssh-keygen -R orin")


@needs_sshd
def test_a_host_key_that_is_not_known(config: Path, orin: Device) -> None:
    change(config, f"{orin.folder}/known_hosts", "/dev/null")
    assert why_not() == ("orin: its host key is not known here; connect once by hand and compare it: ssh orin")


@needs_sshd
def test_a_key_that_is_not_let_in(config: Path, tmp_path: Path, orin: Device) -> None:
    key(tmp_path / "stranger")
    change(config, f"{orin.folder}/user_key", str(tmp_path / "stranger"))
    sentence = why_not()
    assert sentence.startswith("orin: does not let this user in by a key (")
    assert "Permission denied (publickey)" in sentence
    assert sentence.endswith("; put your key there, ssh-copy-id orin, or start ssh-agent")


@needs_sshd
def test_a_name_that_no_machine_has(config: Path) -> None:
    sentence = why_not(Destination("me@nowhere.invalid"))
    assert sentence.startswith("me@nowhere.invalid: no machine of that name is known (ssh: Could not resolve hostname")
    assert sentence.endswith("; correct --on, or write the name into ~/.ssh/config")


@needs_sshd
def test_a_machine_on_which_no_sshd_listens(config: Path, orin: Device) -> None:
    change(config, f"Port {orin.port}", "Port 1")
    sentence = why_not()
    assert sentence.startswith("orin: cannot be reached (ssh: connect to host 127.0.0.1 port 1: Connection refused)")


@needs_sshd
@pytest.mark.parametrize("text", ["NoSuchOption yes\n", "Port seven\n"])
def test_a_configuration_that_ssh_does_not_take(config: Path, text: str) -> None:
    config.write_text(text)
    sentence = why_not()
    assert sentence.startswith("orin: ")
    assert str(config) in sentence


@needs_sshd
def test_a_forced_command_that_is_no_agent(config: Path, orin: Device) -> None:
    """As for a user who may only fetch files."""
    keys = orin.folder / "authorized_keys"
    text = keys.read_text()
    try:
        keys.write_text(f'command="echo only files here; exit 1" {text}')
        assert why_not() == ("orin: the connection ended before anything began; see that `ssh orin true` works")
    finally:
        keys.write_text(text)


@needs_sshd
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("trtforge-agent-1\nnonsense\n", "answers what the agent of trtforge never does"),
        ("trtforge-agent-1\n[1]\n", "answers what the agent of trtforge never does"),
        ('trtforge-agent-1\n{"error": "\\u001b[2Jgone", "status": 2}\n', r"orin: \x1b[2Jgone"),
        ("trtforge-agent-1 3 6\n", "is 3.6, 3.8 is the oldest that works"),
    ],
)
def test_a_hostile_agent(config: Path, orin: Device, answer: str, words: str) -> None:
    """What is no answer ends the call; nothing of it reaches a terminal as a command to it."""
    keys = orin.folder / "authorized_keys"
    text = keys.read_text()
    try:
        (orin.folder / "answer").write_text(answer)
        keys.write_text(f'command="cat {orin.folder}/answer; cat > /dev/null" {text}')
        session = Session(ORIN, "", ask=False)
        with pytest.raises(Exception) as error:  # Each of its kind.
            session.connect()
        session.close()
        assert words in str(error.value)
        assert "\x1b" not in str(error.value)
    finally:
        keys.write_text(text)


@needs_sshd
def test_options_are_added_only_where_the_user_has_none(config: Path) -> None:
    plain = command_for(ORIN, "true", ask=False)
    assert plain[:3] == ["ssh", "-F", str(config)]
    assert plain[-3:] == ["--", "orin", "true"]
    assert {"BatchMode=yes", "ServerAliveInterval=15", "ServerAliveCountMax=4", "ConnectTimeout=30"} <= set(plain)
    asking = command_for(ORIN, "true", ask=True)
    assert "BatchMode=yes" not in asking
    config.write_text(f"ServerAliveInterval 7\nConnectTimeout 9\n{config.read_text()}")
    configured = command_for(ORIN, "true", ask=True)
    assert configured == ["ssh", "-F", str(config), "-T", "--", "orin", "true"]


def test_without_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere/ssh -v")
    with pytest.raises(Unavailable) as error:
        command_for(ORIN, "true", ask=False)
    assert str(error.value) == (
        "/nowhere/ssh: cannot be run (No such file or directory); sudo apt install openssh-client, or name a client "
        "with TRTFORGE_SSH"
    )


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), ("ssh -F 'x", "is no command")])
def test_a_variable_that_is_no_command(monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=words):
        client()


def test_the_client_is_ssh_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert client() == ["ssh"]
    monkeypatch.setenv(VARIABLE, "ssh -F 'my config' -v")
    assert client() == ["ssh", "-F", "my config", "-v"]


@pytest.mark.parametrize(
    "address",
    ["", "-oProxyCommand=x", "a b", "a;b", "$(x)", "`x`", "a|b", "a\x1b[2J", "a\nb", "'a'", "a>b", "~me", "(a)"],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address for ssh; write user@host, or a name of"):
        destinations_from((address,))


def test_addresses() -> None:
    destinations = destinations_from(("orin, me@10.0.0.2", "ssh://me@nano:2222"))
    assert [destination.address for destination in destinations] == ["orin", "me@10.0.0.2", "ssh://me@nano:2222"]
    assert [destination.name for destination in destinations] == ["orin", "me@10.0.0.2", "ssh-me@nano-2222"]
    with pytest.raises(ConfigError, match="--on 'orin': is there twice; name each machine once"):
        destinations_from(("orin", "nano,orin"))
    with pytest.raises(ConfigError, match="another address gives a folder of the same name"):
        destinations_from(("a:b", "a/b"))


@pytest.mark.parametrize(
    ("stderr", "phase", "sentence"),
    [
        ("", "", "orin: the connection ended before anything began; see that `ssh orin true` works"),
        (
            "Connection closed by \x1b[31m10.0.0.2\n",
            "",
            r"orin: the connection ended before anything began (Connection closed by \x1b[31m10.0.0.2); see that `ssh "
            "orin true` works",
        ),
        (
            "Timeout, server orin not responding.\n",
            "the bundle was copied",
            "orin: the connection broke while the bundle was copied (Timeout, server orin not responding.); the same "
            "command goes on where this ended",
        ),
        (
            "connect to host orin port 22: No route to host\n",
            "",
            "orin: cannot be reached (connect to host orin port 22: No route to host); see that it is on and runs sshd",
        ),
    ],
)
def test_sentences(stderr: str, phase: str, sentence: str) -> None:
    assert str(broken(ORIN, stderr, phase)) == sentence


@needs_sshd
def test_a_password_is_never_asked_for_in_a_batch(
    orin: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The connection ends at once where only a password would do."""
    config = tmp_path / "config"
    config.write_text(
        (orin.folder / "ssh_config")
        .read_text()
        .replace(f"IdentityFile {orin.folder}/user_key", "IdentityFile /dev/null")
        + "PreferredAuthentications password,keyboard-interactive,publickey\n"
    )
    monkeypatch.setenv(VARIABLE, f"ssh -F {config}")
    assert "does not let this user in" in why_not(Destination(f"{getpass.getuser()}@orin"))
    monkeypatch.setenv(VARIABLE, client_of(orin))
