"""docs/gateway.md: the shell commands are run, and the conversation is held, as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from msgd.config.parameters import PARAMETERS
from msgd.wire.replies import BYES, ERRORS
from msgd.wire.requests import OPERATIONS
from tests.daemon.daemons import ENVIRONMENT, PATIENCE, TREE, Place
from tests.gateway.raw import RawClient

TEXT = Path(TREE, "docs", "gateway.md").read_text()
COMMANDS = re.findall(r"```console\n\$ (.*)\n(.*)\n```", TEXT)
CONVERSATION = re.findall(r"^([<>]) (.*)$", "\n".join(re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)), re.MULTILINE)


def common(text: str, place: Place) -> str:
    """What is the same each time: addresses are not, nor is the transport."""
    text = re.sub(r'"\d+/\d+"', '"ADDRESS"', text)
    return text.replace(f'"backend": "{place.config.messaging_type}"', '"backend": "dgram"')


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_commands(place: Place, command: str, output: str) -> None:
    msgd = place.msgd()
    command = command.replace("/run/msgd/msgd.sock", shlex.quote(place.gateway)).replace(" 4700", f" {msgd.pid}")
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=True
    )
    assert common(done.stdout, place) == common(output, place) + "\n"


def test_conversation(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client:
        for speaker, line in CONVERSATION:
            if speaker == ">":
                client.write(line.replace("4700", str(msgd.pid)).encode() + b"\n")
            else:
                assert json.loads(common(json.dumps(client.read()), place)) == json.loads(common(line, place))


def test_everything_there_is_is_written_up() -> None:
    for word in (*OPERATIONS, *ERRORS, *BYES):
        assert f"`{word}`" in TEXT
    for parameter in PARAMETERS:
        if parameter.help.startswith("gateway"):
            assert f"`{parameter.name}`" in TEXT, parameter.name
