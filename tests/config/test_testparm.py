# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd and Samba's testparm read the same files in the same way: Debian's, one of each kind, and generated ones.

They agree on whether Samba refuses the file, and on each value that msgd borrows.  Where msgd uses another value, it
must say so.  MSGD_SMB_CONFS is the number of generated files.  testparm says nothing about `log level`, which it sets
itself.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from msgd.config import Config
from msgd.config.parameters import find
from msgd.config.problems import Weight

pytestmark = pytest.mark.skipif(shutil.which("testparm") is None, reason="Samba's testparm is not installed")

BORROWED = ("lock directory", "private dir", "pid directory", "log file", "use mmap", "max connections")
OFFICE = Path(__file__).with_name("office.conf")
DEBIAN = ("/usr/share/samba/smb.conf", "/usr/share/doc/samba-common/examples/smb.conf.default", "/etc/samba/smb.conf")


def sambas_values(path: Path) -> dict[str, str] | None:
    """Return all values of [global] that testparm prints; None if it refuses the file."""
    done = subprocess.run(["testparm", "-s", "-v", path], capture_output=True, cwd=path.parent, check=False)
    if done.returncode != 0:
        return None
    values: dict[str, str] = {}
    for line in done.stdout.decode(errors="surrogateescape").split("\n"):
        if line.startswith("[") and not line.startswith("[global]"):
            break
        name, _, value = line.strip(" \t").partition(" =")
        values[name] = value.removeprefix(" ")
    return values


@cache
def sambas_defaults() -> dict[str, str]:
    found = sambas_values(Path(os.devnull))
    assert found is not None
    return found


def disagreements(path: Path) -> list[str]:
    """Return a line for each disagreement about this file."""
    sambas = sambas_values(path)
    config = Config.load(path)
    is_refused = any(warning.weight is Weight.REFUSED for warning in config.warnings)
    if is_refused != (sambas is None):
        said = "; ".join(map(str, config.warnings))
        return [f"testparm {'refuses' if sambas is None else 'takes'} it, and msgd says: {said or 'nothing'}"]
    found = []
    for name in BORROWED if sambas is not None else ():
        parameter = find(name)
        assert parameter is not None
        assert sambas is not None
        value = getattr(config, parameter.attribute)
        ours = value if isinstance(value, str) else parameter.kind.format(value)
        theirs = sambas[name]
        if name == "log file":  # testparm prints it as it is written, and smbd replaces
            theirs = theirs.replace("%m", "msgd").replace("%h", os.uname().nodename)
        is_given = any(one is parameter and given for one, _, given in config.items())
        is_told = any(warning.text.startswith(f"{parameter.name} = ") for warning in config.warnings)
        if not is_given and sambas[name] != sambas_defaults()[name] and not is_told:
            found.append(f"{name}: testparm sees {theirs}, msgd sees nothing")
        elif is_given and ours.lower() != theirs.lower() and not is_told:
            found.append(f"{name}: testparm sees {theirs}, msgd uses {ours} and says nothing")
    return found


@pytest.mark.parametrize("path", DEBIAN)
def test_debians_files(path: str) -> None:
    if not os.path.exists(path):
        pytest.skip(f"there is no {path}")
    assert disagreements(Path(path)) == []


def test_an_offices_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMB_STATE", "state")
    assert disagreements(OFFICE) == []


GLOBAL = "[global]\npid directory = /x\n"
KINDS = {
    "a missing include": f"{GLOBAL}include = /nowhere/smb.conf\n",
    "a missing include with the host's name": f"{GLOBAL}include = /nowhere/smb.conf.%h\n",
    "a missing include with the client's name": f"{GLOBAL}include = /nowhere/smb.conf.%m\n",
    "an include with a variable that is not set": f"{GLOBAL}include = %$(MSGD_UNSET)\n",
    "an include that is a directory": f"{GLOBAL}include = /\n",
    "an include in quotes": f'{GLOBAL}include = "{os.devnull}"\n',
    "a missing include in a share": f"{GLOBAL}[s]\npath = /\ninclude = /nowhere\n",
    "an include of itself": f"{GLOBAL}include = @\n",
    "no equals sign": f"{GLOBAL}nonsense\npid directory = /y\n",
    "no equals sign in a share": f"{GLOBAL}[s]\npath = /\nnonsense\n",
    "no name": f"{GLOBAL}= x\n",
    "no name in a share": f"{GLOBAL}[s]\npath = /\n= x\n",
    "no bracket": f"{GLOBAL}[share\npath = /\n",
    "no section name": f"{GLOBAL}[]\npath = /\n",
    "no section name after a share": f"{GLOBAL}[s]\npath = /\n[]\n",
    "a blank section name": f"{GLOBAL}[ ]\npath = /\n",
    "a copy of nothing": f"{GLOBAL}[s]\ncopy = nosuch\npath = /\n",
    "a copy of itself": f"{GLOBAL}[s]\ncopy = s\npath = /\n",
    "a copy of a later share": f"{GLOBAL}[s]\ncopy = t\npath = /\n[t]\npath = /\n",
    "a copy of an earlier share": f"{GLOBAL}[T t]\npath = /\n[s]\ncopy = t T\n",
    "a copy of an earlier share that was opened again": f"{GLOBAL}[t]\npath = /\n[s]\npath = /\n[t]\ncopy = s\n",
    "an empty copy": f"{GLOBAL}[s]\ncopy =\npath = /\n",
    "a copy in [global]": f"{GLOBAL}copy = nosuch\n",
    "an empty copy in [global]": f"{GLOBAL}copy =\n",
    "a copy of [global]": f"{GLOBAL}[s]\ncopy = global\npath = /\n",
    "an unknown parameter": f"{GLOBAL}no such parameter = 5\n",
    "a global parameter in a share": f"{GLOBAL}[s]\npath = /\npid directory = /y\nuse mmap = maybe\n",
    "a backend of the file": f"{GLOBAL}config backend = FILE\n",
    "another backend": f"{GLOBAL}config backend = ldap\n",
    "an empty backend": f"{GLOBAL}config backend =\n",
    "the registry in a share": f"{GLOBAL}[s]\npath = /\ninclude = registry\n",
    "an empty file": "",
    "a byte order mark": "\ufeff[global]\npid directory = /x\n",
    "a line of 100,000 characters": f"{GLOBAL}comment = {'a' * 100_000}\npid directory = /y\n",
    "bytes that are not UTF-8": "[global]\npid directory = /caf\udce9\n",
    **{f"{name} = {value}": f"{GLOBAL}{name} = {value}\n" for name in BORROWED[:4] for value in (
        "", '"/q r"', '"/q', "rel/x", "/x/", "/a//b", "/%h", "/%m", "/%I", "/%$(MSGD_UNSET)", "/a=b", "%"
    )},
    **{f"use mmap = {value}": f"[global]\nuse mmap = {value}\n" for value in (
        "yes", "YES", "on", "1", "true", "no", "Off", "0", "False", "y", "maybe", "", "2", '"yes"', "-1", "enable"
    )},
    **{f"max connections = {value}": f"[global]\nmax connections = {value}\n" for value in (
        "5", "0", "-1", "", "many", "1.5", "0x10", "010", "05", "089", "+5", "5 6", "5k", "99999999999", '"5"', "-0x1"
    )},
    **{f"log level = {value}": f"[global]\nlog level = {value}\npid directory = /x\n" for value in (
        "11", "", "abc", "3 foo", "3 auth:x", "3 auth:11", "0x5", "1 auth:5@/x", "100000000000"
    )},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_each_kind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "smb.conf"
    path.write_bytes(KINDS[kind].replace("include = @", f"include = {path}").encode(errors="surrogateescape"))
    assert disagreements(path) == []


def net(*arguments: str) -> None:
    subprocess.run(["net", "conf", *arguments], check=True, capture_output=True)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("net") is None, reason="needs root and Samba's net")
def test_the_registry(tmp_path: Path) -> None:
    path = tmp_path / "smb.conf"
    directories = "".join(f"{name} directory = {tmp_path}\n" for name in ("state", "lock", "cache", "private"))
    path.write_text(f"[global]\n{directories}")
    included = tmp_path / "included.conf"
    included.write_text("log file = /from/include\n")
    net("-s", str(path), "setparm", "global", "pid directory", "/from/registry")
    net("-s", str(path), "setparm", "global", "msgd:close timeout", "3")
    net("-s", str(path), "setparm", "share", "path", "/")
    net("-s", str(path), "setincludes", "global", str(included), "/nowhere/x")
    path.write_text(f"[global]\npid directory = /a\nmax connections = 7\n{directories}include = registry\n")
    assert disagreements(path) == []
    loaded = Config.load(path)
    assert (loaded.pid_directory, loaded.close_timeout, loaded.log_file) == ("/from/registry", 3.0, "/from/include")
    assert [str(warning) for warning in loaded.warnings] == [
        f"{tmp_path}/registry.tdb: include = /nowhere/x: No such file or directory"
    ]
    path.write_text(f"{path.read_text()}pid directory = /later\n[s]\npath = /\ncopy = share\n")
    assert Config.load(path).pid_directory == "/later"
    assert all(warning.weight is Weight.PASSED_OVER for warning in Config.load(path).warnings)


# Generated files.

VALUES = ["/x", "/y", "", "yes", "no", "3", "-1", "rel", '"/q"', "/a b", "/%m/x", "a=b", "/x \\", "0x1f"]
LINES = [
    "[global]", "[GLOBALS]", "[s]", "[t]", "[ s ]", "[s] ; text", "  # comment", "; comment \\", "", " \\", "nonsense",
    "copy = s", "copy = t", "copy = nosuch", "include = a.conf", "include = b.conf", "include = /nowhere",
    "workgroup = A", "path = /", "comment = b \\", "netbios name = pier", "include =", "[broken", "= 4", "[]",
    "interfaces = lo", "server string = %h", "Pid \\", "directory = /z", "include = %$(MSGD_UNSET)",
]  # fmt: skip
RARE = {"[broken", "= 4", "[]", "copy = nosuch", "copy = s", "copy = t"}
"""These make Samba refuse the whole file, so that nothing else is compared."""


def generated(choice: random.Random) -> str:
    lines = []
    for _ in range(choice.randrange(1, 14)):
        if choice.random() < 0.5:
            name = choice.choice(BORROWED)
            lines.append(f"{choice.choice([name, name.upper(), name.replace(' ', '')])} = {choice.choice(VALUES)}")
        else:
            line = choice.choice(LINES)
            if line not in RARE or choice.random() < 0.2:
                lines.append(line)
    return "\n".join(lines) + choice.choice(["\n", ""])


def test_generated_files(tmp_path: Path) -> None:
    number = int(os.environ.get("MSGD_SMB_CONFS", "40"))
    for seed in range(number):
        choice = random.Random(seed)
        for name in ("a.conf", "b.conf", "smb.conf"):
            (tmp_path / name).write_text(generated(choice) if name == "smb.conf" or choice.random() < 0.7 else "")
        path = tmp_path / "smb.conf"
        found = disagreements(path)
        assert found == [], f"seed {seed}:\n{path.read_text()}"
