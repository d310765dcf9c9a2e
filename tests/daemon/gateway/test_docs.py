# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""docs/gateway.md: the shell commands are run, and the conversation is held, as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msgd import Config
from msgd.config.parameters import PARAMETERS
from msgd.daemon.gateway import places, shares, starts
from msgd.daemon.gateway.places import kept_for_root
from msgd.daemon.metrics import scrapes
from msgd.daemon.reloads import BURST
from msgd.drops import LOG_INTERVAL
from msgd.wire.gateway.limits import MAX_CALLS, MAX_TIMEOUT, MAX_TYPES
from msgd.wire.gateway.replies import BYES, ERRORS
from msgd.wire.gateway.requests import OPERATIONS
from tests.daemon.gateway.raw import RawClient
from tests.support.daemons import ENVIRONMENT, PATIENCE, TREE, Place, Running

TEXT = Path(TREE, "docs", "gateway.md").read_text()
COMMANDS = re.findall(r"```console\n\$ (.*)\n(.*)\n```", TEXT)
LISTENING = re.findall(r"```sh\n(.*)\n```", TEXT)
CONVERSATION = re.findall(r"^([<>]) (.*)$", "\n".join(re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)), re.MULTILINE)


def common(text: str, place: Place) -> str:
    """What is the same each time: addresses are not, nor is the transport."""
    text = re.sub(r'"\d+": ', '"PID": ', re.sub(r'"\d+/\d+"', '"ADDRESS"', text))
    return text.replace(f'"backend": "{place.config.messaging_type}"', '"backend": "dgram"')


PYTHON = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "prices" in block]
(PERL,) = re.findall(r"```perl\n(.*?)```", TEXT, re.DOTALL)

needs_socat = pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")


def typed(command: str, place: Place) -> str:
    """The command as one types it in this place."""
    return command.replace("/run/msgd/msgd.sock", shlex.quote(place.gateway))


@needs_socat
@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_commands(place: Place, command: str, output: str) -> None:
    msgd = place.msgd()
    command = typed(command, place).replace(" 4700", f" {msgd.pid}")
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=True
    )
    assert common(done.stdout, place) == common(output, place) + "\n"


@pytest.mark.parametrize("block", PYTHON)
def test_python(place: Place, block: str) -> None:
    place.msgd()
    code = block.replace("Client()", f"Client({place.gateway!r})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout in ("True {}\nprices.eur {'rate': 1.1}\n", "prices.eur 1.1\n")


def test_another_language(place: Place) -> None:
    place.msgd()
    perl = ["perl", "-e", PERL.replace("/run/msgd/msgd.sock", place.gateway)]
    with RawClient(place) as client:
        client.ask(op="subscribe", topics="prices.eur")
        done = subprocess.run(perl, capture_output=True, text=True, timeout=PATIENCE)
        assert (done.stdout, done.stderr, done.returncode) == ("prices.eur is 1.1\n", "", 0)
        assert client.read()["text"] == "1.1"


@needs_socat
def test_who_listens_hears_what_everybody_is_told(place: Place) -> None:
    (listening,) = LISTENING
    (telling,) = (command for command, _ in COMMANDS if "send_all" in command)
    place.msgd()
    listener = place.keep(Running(["sh", "-c", typed(listening, place)]))
    assert json.loads(listener.await_line("register"))["ok"]
    subprocess.run(["sh", "-c", typed(telling, place)], env=ENVIRONMENT, timeout=PATIENCE, check=True)
    event = json.loads(listener.await_line("event"))
    assert (event["event"], event["type"], event["text"]) == ("message", "0xf000", "lunch")


def test_the_fixed_bounds_are_what_they_are_said_to_be() -> None:
    fixed = [float(number) for number in re.findall(r"\| fixed, (\d+)", TEXT)]
    assert fixed == [MAX_CALLS, MAX_TYPES, MAX_TYPES, MAX_TIMEOUT]


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


def test_the_promises_to_several_users_have_the_numbers_of_the_code() -> None:
    section = TEXT.partition("## Several users\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (.*) \| (.*) \|$", section, re.MULTILINE))
    config = Config()
    users = config.max_clients - kept_for_root(config.max_clients)
    expected = {
        "One user has so many": f"{config.max_clients_per_user}",
        "Places are kept": f"one in {places.ROOT_SHARE} of `msgd:max clients`: {kept_for_root(config.max_clients)} of",
        f"fewer than {places.SMALL} clients": f"one in {places.SMALL_SHARE}: {users // places.SMALL_SHARE} of {users}",
        "start at the same time": f"{starts.MOST}. ",
        f"less than {shares.LEAST >> 20} MiB": f"`msgd:user memory`: {config.user_memory >> 20} MiB",
        "Reloads": f"{BURST}",
        "Log lines about refused": f"{LOG_INTERVAL:g} a second",
        f"within {scrapes.REQUEST_LIMIT} seconds": f"{scrapes.MOST}",
    }
    for promise, number in expected.items():
        (said,) = (number for text, number in rows.items() if promise in text)
        assert number in said, promise
