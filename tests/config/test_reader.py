# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The form of smb.conf: lines, names, sections and includes, and the file and line of each setting."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import _registry
from msgd.config import reader
from msgd.config.parameters import fold
from msgd.config.problems import Origin, Weight, shown
from msgd.config.reader import read
from msgd.errors import ConfigError


def write(directory: Path, content: str | bytes, name: str = "smb.conf") -> str:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
    return str(path)


def values(directory: Path, content: str | bytes) -> dict[str, str]:
    """Return the settings of [global] by name. The content must have no problems."""
    reading = read(write(directory, content))
    assert reading.problems == ()
    return {setting.name: setting.value for setting in reading.settings}


# Each sets `pid directory` in [global]. A test below compares them with what Samba's testparm reads.
FORMS = {
    "plain": ("[global]\npid directory = /x\n", "/x"),
    "no section": ("pid directory = /x\n", "/x"),
    "no newline at the end": ("[global]\npid directory = /x", "/x"),
    "carriage returns": ("[global]\r\npid directory = /x\r\n", "/x"),
    "byte order mark": ("\ufeff[global]\npid directory = /x\n", "/x"),
    "indented": ("  [global]\n\t pid directory = /x\n", "/x"),
    "indented below another": ("[global]\nworkgroup = A\n    pid directory = /x\n", "/x"),
    "no blanks around the equals sign": ("[global]\npid directory=/x\n", "/x"),
    "blanks and case in the name": ("[global]\nPID\t  DirecTory = /x\n", "/x"),
    "no blanks in the name": ("[global]\npiddirectory = /x\n", "/x"),
    "blanks and case in the section": ("[s]\npath = /s\n[ Glo bal ]\npid directory = /x\n", "/x"),
    "globals": ("[s]\npath = /s\n[globals]\npid directory = /x\n", "/x"),
    "text after the section": ("[s]\npath = /s\n[global] ; here\npid directory = /x\n", "/x"),
    "section over two lines": ("[s]\npath = /s\n[glo\\\nbal]\npid directory = /x\n", "/x"),
    "repeated": ("[global]\npid directory = /y\npid directory = /x\n", "/x"),
    "repeated in another spelling": ("[global]\npid directory = /y\nPidDirectory = /x\n", "/x"),
    "repeated section": ("[global]\npid directory = /y\n[s]\npath = /s\n[global]\npid directory = /x\n", "/x"),
    "equals signs in the value": ("[global]\npid directory = /a=b = c\n", "/a=b = c"),
    "colons in the value": ("[global]\npid directory = /a:b : c\n", "/a:b : c"),
    "brackets in the value": ("[global]\npid directory = [/x]\n", "[/x]"),
    "hash in the value": ("[global]\npid directory = /x # no comment\n", "/x # no comment"),
    "semicolon in the value": ("[global]\npid directory = /x ; no comment\n", "/x ; no comment"),
    "percent in the value": ("[global]\npid directory = /x%20%41\n", "/x%20%41"),
    "quotes in the value": ('[global]\npid directory = "/x"\n', '"/x"'),
    "empty": ("[global]\npid directory =\n", ""),
    "runs of blanks": ("[global]\npid directory = /a   b \t c\n", "/a b c"),
    "continued": ("[global]\npid directory = /a\\\n/b\n", "/a/b"),
    "continued and indented": ("[global]\npid directory = /a \\\n     b\n", "/a b"),
    "continued thrice": ("[global]\npid directory = /a\\\n/b\\\n/c\\\n/d\n", "/a/b/c/d"),
    "continued in the name": ("[global]\npid \\\ndirectory = /x\n", "/x"),
    "continued in the middle of a word": ("[global]\npid dire\\\nctory = /x\n", "/x"),
    "continued with blanks behind the backslash": ("[global]\npid directory = /a\\  \n/b\n", "/a/b"),
    "continued by what looks like a comment": ("[global]\npid directory = /a\\\n # b\n", "/a # b"),
    "continued by what looks like a section": ("[global]\npid directory = /a\\\n[s]\n", "/a[s]"),
    "continued by nothing": ("[global]\npid directory = /x\\\n\nworkgroup = A\n", "/x"),
    "continued blank line": ("[global]\n   \\\npid directory = /x\n", "/x"),
    "two backslashes": ("[global]\npid directory = /a\\\\\n/b\n", "/a\\/b"),
    "backslash at the very end": ("[global]\npid directory = /x\\", "/x\\"),
    "backslash in the middle": ("[global]\npid directory = /a\\b\n", "/a\\b"),
    "comments": ("# a\n[global]\n; b = c\n   # d = e\npid directory = /x\n", "/x"),
    "comment ending in a backslash": ("[global]\n; a \\\npid directory = /x\n", "/x"),
    "commented out later": ("[global]\npid directory = /x\n#pid directory = /y\n", "/x"),
    "missing include": ("[global]\ninclude =\npid directory = /x\n", "/x"),
    "not ASCII": ("[global]\npid directory = /ü/日本\n", "/ü/日本"),
}


@pytest.mark.parametrize(("content", "value"), FORMS.values(), ids=FORMS)
def test_forms(tmp_path: Path, content: str, value: str) -> None:
    found = {fold(name): text for name, text in values(tmp_path, content).items()}
    assert found["piddirectory"] == value


@pytest.mark.skipif(shutil.which("testparm") is None, reason="Samba's testparm is not installed")
@pytest.mark.parametrize(("content", "value"), FORMS.values(), ids=FORMS)
def test_testparm_reads_each_form_in_the_same_way(tmp_path: Path, content: str, value: str) -> None:
    command = ["testparm", "-s", "--parameter-name=pid directory", write(tmp_path, content)]
    printed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert printed == f"{value}\n"


def test_parametric_options_keep_colons_and_equals_signs(tmp_path: Path) -> None:
    text = "[global]\nmsgd:a b = c:d=e\nidmap config * : backend = tdb\nmsgd : A B = f\n:b=4\nx:=5\n"
    assert values(tmp_path, text) == {"idmap config * : backend": "tdb", "msgd : A B": "f", ":b": "4", "x:": "5"}


def test_line_breaks_of_other_kinds_are_characters(tmp_path: Path) -> None:
    assert values(tmp_path, "comment = a\x0bb\x1cc\x85d\u2028e\rf\n")["comment"] == "a\x0bb\x1cc\x85d\u2028e\rf"


def test_any_bytes_load(tmp_path: Path) -> None:
    assert os.fsencode(values(tmp_path, b"comment = caf\xe9 \xff\xfe\n")["comment"]) == b"caf\xe9 \xff\xfe"


def test_shares_are_ignored(tmp_path: Path) -> None:
    assert values(tmp_path, "[s]\nlog level = 9\nnonsense\n = x\n[]\nlog level = 8\n") == {}


def test_every_setting_knows_its_line(tmp_path: Path) -> None:
    write(tmp_path, "\n# comment\nb = 2\n", "sub/b.conf")
    path = write(
        tmp_path,
        "a = 1 \\\n  and \\\n  again\n\n; c\n[global]\ninclude = sub/b.conf\n  c = 3\n[s]\nx = y\n[global]\nd = 4",
    )
    assert [(s.name, s.origin) for s in read(path).settings] == [
        ("a", Origin(path, 1)),
        ("b", Origin(f"{tmp_path}/sub/b.conf", 3)),
        ("c", Origin(path, 8)),
        ("d", Origin(path, 12)),
    ]


def test_the_last_setting_determines_value_line_and_position(tmp_path: Path) -> None:
    path = write(tmp_path, "a = 1\nb = 2\nA = 3\n")
    assert [tuple(s) for s in read(path).settings] == [("b", "2", (path, 2)), ("A", "3", (path, 3))]


def test_an_include_is_relative_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "include = deep/two.conf\none = 1\n", "sub/one.conf")
    write(tmp_path, "two = 2\n", "sub/deep/two.conf")
    monkeypatch.chdir("/")
    assert values(tmp_path, "include = sub/one.conf\nzero = 0\n") == {"two": "2", "one": "1", "zero": "0"}


def test_a_section_that_begins_in_an_include_continues_after_it(tmp_path: Path) -> None:
    write(tmp_path, "[share]\npath = /\n", "share.conf")
    assert values(tmp_path, "a = 1\ninclude = share.conf\nb = 2\n[global]\nc = 3\n") == {"a": "1", "c": "3"}


def test_an_include_in_a_share_may_return_to_global(tmp_path: Path) -> None:
    write(tmp_path, "[global]\na = 1\n", "global.conf")
    assert values(tmp_path, "[share]\ninclude = global.conf\n") == {"a": "1"}


def test_a_file_may_be_included_twice(tmp_path: Path) -> None:
    write(tmp_path, "a = 1\n", "a.conf")
    assert values(tmp_path, "include = a.conf\na = 2\ninclude = a.conf\n") == {"a": "1"}


def test_substitutions_in_an_include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE", "north")
    write(tmp_path, "a = 1\n", f"{os.uname().nodename}-PIER7-north-%.conf")
    assert values(tmp_path, "netbios name = pier7\ninclude = %h-%L-%$(SITE)-%%.conf\n")["a"] == "1"


@pytest.mark.parametrize("name", ["/etc/samba/%m.conf", "%I", "x-%U-%h", "registry", "Registry", ""])
def test_includes_that_only_samba_can_follow_are_ignored(tmp_path: Path, name: str) -> None:
    assert values(tmp_path, f"include = {name}\na = 1\n") == {"a": "1"}


def test_a_missing_include_is_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path, "[s]\n\ninclude = none.conf\n[global]\na = 1\n")
    reading = read(path)
    assert [str(p) for p in reading.problems] == [f"{path}:3: include = none.conf: No such file or directory"]
    assert [s.name for s in reading.settings] == ["a"]


def test_an_include_with_an_unset_variable_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    (problem,) = read(write(tmp_path, "include = %$(NOT_SET)/a.conf\n")).problems
    assert problem.text == "include = %$(NOT_SET)/a.conf: the environment has no variable 'NOT_SET'"


def test_a_cycle_names_its_chain(tmp_path: Path) -> None:
    top, a, b = str(tmp_path / "smb.conf"), f"{tmp_path}/a.conf", f"{tmp_path}/b.conf"
    write(tmp_path, "include = b.conf\n", "a.conf")
    write(tmp_path, "\ninclude = ./a.conf\n", "b.conf")
    (problem,) = read(write(tmp_path, "include = a.conf\n")).problems
    assert str(problem) == (
        f"{b}:2: include = ./a.conf: includes itself: {top} -> {a} -> {b} -> {os.path.join(tmp_path, './a.conf')}"
    )


def test_depth_is_bounded(tmp_path: Path) -> None:
    for n in range(reader.MAX_DEPTH + 1):
        write(tmp_path, f"include = {n + 1}.conf\n", f"{n}.conf")
    (problem,) = read(str(tmp_path / "0.conf")).problems
    assert problem.text == "include = 100.conf: more than 100 files include each other"


def test_includes_cannot_multiply_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_BYTES", 1 << 16)
    for n in range(60):
        write(tmp_path, f"include = {n + 1}.conf\n" * 2, f"{n}.conf")
    write(tmp_path, "a = 1\n", "60.conf")
    assert "too large for a smb.conf" in read(str(tmp_path / "0.conf")).problems[-1].text


@pytest.mark.parametrize(
    ("content", "line", "complaint"),
    [
        ("a = 1\nnonsense\n", 2, "nonsense: neither a [section] nor name = value"),
        ("[global]\n\n = x\n", 3, "= x: neither a [section] nor name = value"),
        ("a = 1\n[share\n", 2, "[share: the ] after the section's name is missing"),
        (
            "[s]\nmsgd:close timeout = 3\n",
            2,
            "msgd:close timeout: has no effect in a share; it belongs in [global]",
        ),
        ("\x1b[2J\n", 1, "\\x1b[2J: neither a [section] nor name = value"),
    ],
)
def test_bad_form_is_a_problem(tmp_path: Path, content: str, line: int, complaint: str) -> None:
    path = write(tmp_path, content)
    assert [str(p) for p in read(path).problems] == [f"{path}:{line}: {complaint}"]


def test_the_number_of_reported_problems_is_bounded(tmp_path: Path) -> None:
    told = read(write(tmp_path, "what is this?\n" * 1000)).problems
    assert len(told) == reader.MAX_PROBLEMS + 1
    assert told[-1].text == "and there are more problems; is this a smb.conf?"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a = \0\n", "contains NUL bytes, so it is not a smb.conf"),
        (b"#" * ((16 << 20) + 1), "more than 16 MiB: too large for a smb.conf"),
    ],
    ids=["NUL", "too large"],
)
def test_files_that_are_not_a_smb_conf_are_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert caught.value.problems == (f"{path}: {complaint}",)


def test_16_mib_are_accepted(tmp_path: Path) -> None:
    assert values(tmp_path, b"a=1\n" + b"#" * ((16 << 20) - 4)) == {"a": "1"}


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (".", "Is a directory"),
        ("none.conf", "No such file or directory"),
        ("loop.conf", "Too many levels of symbolic links"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_unreadable_files(tmp_path: Path, path: str, complaint: str) -> None:
    (tmp_path / "loop.conf").symlink_to("loop.conf")
    named = os.path.join(tmp_path, path)
    with pytest.raises(ConfigError) as caught:
        read(named)
    assert caught.value.problems == (f"{named}: {complaint}",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read a file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write(tmp_path, "a = 1\n")
    os.chmod(path, 0)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match="Permission denied"):
            read(path)
    finally:
        os.seteuid(0)


def test_shown_is_short_and_harmless() -> None:
    assert shown("a" * 1000) == "a" * 200 + "..."
    assert shown("\x1b[31m\udcff\n") == "\\x1b[31m\\udcff\\n"
    assert shown("Drücker") == "Drücker"


LINES = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(["[global]", "[s]", "[", "include = smb.conf", "include = x", "a = b \\", "\\", "msgd:x = 1"]),
    ),
    max_size=20,
).map("\n".join)


@given(content=st.one_of(st.binary(max_size=300), LINES.map(lambda text: text.encode(errors="replace"))))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    try:
        found = read(path).settings
    except ConfigError:
        return
    assert all("=" not in setting.name for setting in found)
    assert all(1 <= setting.origin.line <= content.count(b"\n") + 1 for setting in found)


# What Samba refuses, what it passes over, and its registry.


@pytest.mark.parametrize(
    ("content", "weight"),
    [
        ("nonsense\n", Weight.PASSED_OVER),
        ("include = /nowhere\n", Weight.PASSED_OVER),
        ("= x\n", Weight.REFUSED),
        ("[share\n", Weight.REFUSED),
        ("include = smb.conf\n", Weight.REFUSED),
        ("config backend = ldap\n", Weight.REFUSED),
        ("copy = s\n", Weight.REFUSED),
        ("[s]\nmsgd:x = 1\n", Weight.OWN),
        ("nonsense\n" * 200 + "[s]\nmsgd:x = 1\n", Weight.OWN),
    ],
)
def test_the_weight_of_a_problem(tmp_path: Path, content: str, weight: Weight) -> None:
    problems = read(write(tmp_path, content)).problems
    assert max(problem.weight for problem in problems) is weight


def test_what_is_wrong_in_shares_is_remarked(tmp_path: Path) -> None:
    path = write(tmp_path, "[s]\nnonsense\n= x\n[]\n[t]\ncopy = S\ncopy = u\n[u]\ninclude = registry\n")
    reading = read(path)
    assert reading.problems == ()
    assert [(remark.origin.line, remark.weight) for remark in reading.remarks] == [
        (2, Weight.PASSED_OVER),
        (3, Weight.REFUSED),
        (4, Weight.REFUSED),
        (7, Weight.REFUSED),
        (9, Weight.REFUSED),
    ]


def test_a_relative_include_is_remarked(tmp_path: Path) -> None:
    write(tmp_path, "a = 1\n", "a.conf")
    (remark,) = read(write(tmp_path, "include = a.conf\n")).remarks
    assert "not an absolute path" in remark.text


def registry(directory: Path, version: int, *settings: tuple[str, int, bytes]) -> str:
    """Write a registry.tdb with these values in [global]. Return the line that makes a smb.conf look for it."""
    tdb = pytest.importorskip("tdb")
    packed = struct.pack("<I", len(settings)) + b"".join(
        name.encode() + b"\0" + struct.pack("<II", kind, len(data)) + data for name, kind, data in settings
    )
    database = tdb.Tdb(str(directory / "registry.tdb"), 0, tdb.DEFAULT, os.O_RDWR | os.O_CREAT, 0o600)
    database.store(b"INFO/version\0", struct.pack("<I", version))
    database.store(b"SAMBA_REGVAL\\HKLM\\SOFTWARE\\SAMBA\\SMBCONF\\GLOBAL\0", packed)
    database.close()
    return f"state directory = {directory}\n"


def wide(text: str) -> bytes:
    return f"{text}\0".encode("utf-16-le")


def test_the_registry_stands_where_it_is_included(tmp_path: Path) -> None:
    state = registry(tmp_path, 3, ("a", 1, wide("registry")), ("b", 1, wide("ü")))
    content = f"{state}a = before\ninclude = Registry\nb = after\n"
    assert values(tmp_path, content) == {"state directory": str(tmp_path), "a": "registry", "b": "after"}


@pytest.mark.parametrize(
    "damaged",
    [
        (4, ("a", 1, wide("x"))),
        (3, ("a", 9, wide("x"))),
        (3, ("a", 1, b"odd")),
    ],
)
def test_a_registry_that_is_not_understood_is_refused(
    tmp_path: Path, damaged: tuple[int, tuple[str, int, bytes]]
) -> None:
    path = write(tmp_path, f"{registry(tmp_path, *damaged)}include = registry\n")
    (problem,) = read(path).problems
    assert problem.weight is Weight.OWN
    assert str(problem).startswith(f"{path}:2: include = registry: {tmp_path}/registry.tdb: it")


def test_a_file_that_is_no_registry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "registry.tdb").write_bytes(b"what is this?" * 100)
    (problem,) = read(write(tmp_path, f"state directory = {tmp_path}\ninclude = registry\n")).problems
    assert problem.weight is Weight.OWN


def test_a_missing_registry_is_empty(tmp_path: Path) -> None:
    reading = read(write(tmp_path, f"state directory = {tmp_path}\ninclude = registry\n"))
    assert reading.problems == ()
    (remark,) = reading.remarks
    assert remark.text == f"include = registry: there is no {tmp_path}/registry.tdb; an empty registry is assumed"


def test_the_backend_registry_replaces_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry(tmp_path, 3, ("a", 1, wide("registry")))
    monkeypatch.setattr(_registry, "PRIVATEDIR", f"{tmp_path}/private")
    reading = read(write(tmp_path, "a = file\nb = file\nconfig backend = registry\n"))
    assert [setting.value for setting in reading.settings] == ["registry"]
    (remark,) = reading.remarks
    assert remark.text == f"config backend = registry: the other settings of {tmp_path}/smb.conf do not count"
