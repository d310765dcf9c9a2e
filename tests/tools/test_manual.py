# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The manual pages and the completion contain every option and parameter, and groff and bash accept them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_support import project
from msgd.config import PARAMETERS
from msgd.config.parameters import fold
from msgd.tools.manual.__main__ import main
from msgd.tools.manual.roff import Roff, escaped
from msgd.tools.msgcontrol.commands import COMMANDS
from tests.support.daemons import Place
from tests.support.harness import Peer, Session

PAGES = ["msgbench.1", "msgcontrol.1", "msgd-smb.conf.5", "msgd.8", "msgparm.1", "msgstatus.1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manual")
    programs = project.read(project.ROOT).programs
    assert main([str(directory), *(f"{program.name}={program.module}" for program in programs)]) == 0
    return directory


def shown(page: Path) -> str:
    """A page as a terminal shows it, joined into one line. groff must not complain about its source."""
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", "-P-c", "-P-b", "-P-u", "-rLL=300n", str(page)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return " ".join(done.stdout.split())


needs_groff = pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")


@needs_groff
@pytest.mark.parametrize("page", PAGES)
def test_pages(made: Path, page: str) -> None:
    text = shown(made / "man" / page)
    name, _, section = page.rpartition(".")
    for wanted in ("NAME", f"{name} - ", "SYNOPSIS", "DESCRIPTION", "FILES", "/smb.conf", "SEE ALSO"):
        assert wanted in text
    for other in PAGES:
        other_name, _, other_section = other.rpartition(".")
        assert (f"{other_name}({other_section})" in text.partition("SEE ALSO")[2]) == (other != page)
    assert text.startswith(f"{name.upper()}({section})")


def test_there_are_no_other_pages(made: Path) -> None:
    assert sorted(path.name for path in (made / "man").iterdir()) == PAGES


@needs_groff
def test_a_page_contains_the_help_text(made: Path) -> None:
    text = shown(made / "man" / "msgcontrol.1")
    for command in COMMANDS:
        assert f"{command.name} " in text
        assert command.help in text
    for wanted in (
        "-t, --timeout SECONDS how long to wait",
        "COMMANDS",
        "EXAMPLES",
        "EXIT STATUS 0 if every destination",
    ):
        assert wanted in text
    bench = shown(made / "man" / "msgbench.1")
    assert "MSGBENCH PING" in bench
    assert "%(default)s" not in bench


@needs_groff
def test_every_parameter_is_described(made: Path) -> None:
    text = shown(made / "man" / "msgd-smb.conf.5")
    for parameter in PARAMETERS:
        assert f" {parameter.name} {parameter.sentence} Default: " in text


def test_text_is_escaped_for_roff() -> None:
    roff = Roff("a", 1, "0")
    roff.text(".TH is text, and so is a \\ and a -")
    assert roff.page().endswith("\\&.TH is text, and so is a \\e and a \\-\n")
    assert escaped("'tis") == "\\&'tis"


MSGDS_PARAMETERS = {
    fold(parameter.name).removeprefix("msgd:") for parameter in PARAMETERS if parameter.name.startswith("msgd:")
}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["msgcontrol", "ms"], {"msgd"}),
        (["msgcontrol", "msgd", "num"], {"num-children"}),
        (["msgcontrol", "--t"], {"--timeout"}),
        (["msgcontrol", "-t", ""], set()),
        (["msgd", "--fore"], {"--foreground"}),
        (["msgbench", "tort"], {"torture"}),
        (["msgbench", "torture", "--ql"], {"--qlen"}),
        (["msgbench", "flood", "--types", "dg"], {"dgram"}),
        (["msgparm", "--parameter-name", "lock"], {"lockdirectory"}),
        (["msgparm", "--parameter-name", "msgd", ":", "maxm"], {"maxmessagesize"}),
        (["msgparm", "--parameter-name", "msgd", ":"], MSGDS_PARAMETERS),
        (["msgparm", "-s", "/etc/passw"], {"/etc/passwd", "/etc/passwd-"}),
    ],
)
def test_completion(made: Path, words: list[str], offered: set[str]) -> None:
    assert completed(made, words) | {"/etc/passwd-"} == offered | {"/etc/passwd-"}  # a backup file that may exist


def completed(made: Path, words: list[str], path: str = os.environ["PATH"]) -> set[str]:
    """What bash offers for the last of the words, which bash has split."""
    script = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); "_$1"; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-u", "-c", script, "bash", str(made / "completion" / words[0]), *words],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_completion_of_the_names_of_processes(made: Path, place: Place, tmp_path: Path) -> None:
    """A name is offered as it is: the shell runs nothing of it."""
    msgstatus = tmp_path / "msgstatus"
    msgstatus.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m msgd.tools.msgstatus "$@"\n')
    msgstatus.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    trap = tmp_path / "trap"
    with Peer(place.config) as peer:
        peer.call(add_names, "frontend", f"$(touch${{IFS}}{trap})", "`false`")
        assert completed(made, ["msgcontrol", "-s", str(place.smb_conf), "fr"], path) == {"frontend"}
        assert {"all", "msgd", "ping", "frontend"} < completed(
            made, ["msgcontrol", "-s", str(place.smb_conf), ""], path
        )
    assert not trap.exists()


def add_names(session: Session, *names: str) -> None:
    for name in names:
        session.messaging.add_name(name)
