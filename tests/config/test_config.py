# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Config and the table of parameters: values, defaults, checks, and the messages about mistakes."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import _registry
from msgd.config import PARAMETERS, Config, changes_on_reload, config
from msgd.config.kinds import Boolean, Groups, Level, LogLevel, Number, Seconds, SocketAddress, TypeRules, Users
from msgd.config.parameters import Parameter, find, no_such_parameter
from msgd.config.problems import Weight
from msgd.config.values import ConfigValues
from msgd.errors import ConfigError

OFFICE = Path(__file__).with_name("office.conf")


def load(directory: Path, content: str) -> Config:
    path = directory / "smb.conf"
    path.write_bytes(content.encode(errors="surrogateescape"))
    return Config.load(path)


def problems(directory: Path, content: str) -> list[str]:
    """Return the problems of the content, without the path of the file."""
    with pytest.raises(ConfigError) as caught:
        load(directory, content)
    return [problem.removeprefix(f"{directory}/smb.conf:") for problem in caught.value.problems]


def warnings(directory: Path, content: str) -> list[str]:
    """Return the warnings about the content, without the path of the file."""
    return [str(warning).removeprefix(f"{directory}/smb.conf:") for warning in load(directory, content).warnings]


def dump(parameters: Config) -> str:
    return "\n".join(parameter.dump(value) for parameter, value, _ in parameters.items())


# The table.

NO_PARAMETERS = ("source", "warnings", "_given")


def test_table_and_typed_attributes_agree() -> None:
    declared = {name: hint for name, hint in typing.get_type_hints(Config).items() if name not in NO_PARAMETERS}
    assert list(declared) == [parameter.attribute for parameter in PARAMETERS]
    for name, hint in declared.items():
        value = getattr(Config(), name)
        assert isinstance(value, typing.get_origin(hint) or hint), name


def test_names_are_unique_in_every_spelling() -> None:
    names = [name for parameter in PARAMETERS for name in (parameter.name, *parameter.synonyms)]
    assert len({name.replace(" ", "").lower() for name in names}) == len(names)
    assert len({parameter.attribute for parameter in PARAMETERS}) == len(PARAMETERS)


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.attribute)
def test_each_parameter_can_stand_in_a_manual(parameter: Parameter) -> None:
    assert parameter.help
    assert "\n" not in parameter.help
    assert not parameter.help.endswith(".")
    assert parameter.kind.description
    assert parameter.attribute.isidentifier()
    assert find(parameter.name) is parameter


@pytest.mark.parametrize(
    ("spelling", "attribute"),
    [
        ("lock directory", "lock_directory"),
        ("LockDirectory", "lock_directory"),
        ("LOCK DIR", "lock_directory"),
        ("private directory", "private_dir"),
        ("debug level", "log_level"),
        ("debuglevel", "log_level"),
        ("msgd:clean-up interval", "clean_up_interval"),
        ("MSGD : send queue messages", "send_queue_messages"),
    ],
)
def test_find_accepts_every_spelling(spelling: str, attribute: str) -> None:
    found = find(spelling)
    assert found is not None
    assert found.attribute == attribute


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("msgd:send queue mesages", "did you mean msgd:send queue messages?"),
        ("Lock Dri", "did you mean lock directory?"),
        ("msgd:wonderful", "msgparm -v lists them all"),
        ("workgroup", "msgparm -v lists them all"),
    ],
)
def test_the_message_about_an_unknown_name(name: str, hint: str) -> None:
    assert find(name) is None
    assert no_such_parameter(name) == f"no such parameter; {hint}"


# Defaults, and values from Python.


def test_defaults() -> None:
    defaults = Config()
    assert defaults.messaging_type == _registry.MESSAGING_MODULES[0].name
    assert defaults.lock_directory == _registry.LOCKDIR
    assert defaults.private_dir == _registry.PRIVATEDIR
    assert defaults.pid_directory == _registry.PIDDIR
    assert defaults.socket_directory == f"{_registry.LOCKDIR}/msg.sock"
    assert defaults.max_message_size == 16 << 20
    assert defaults.send_queue_bytes == 64 << 20
    assert defaults.source is None
    assert not any(is_set for _, _, is_set in defaults.items())


def test_overrides() -> None:
    made = Config(
        lock_directory="/run/a", max_message_size="1M", use_mmap=False, close_timeout=1, trusted_users=["root"]
    )
    assert made.lock_directory == "/run/a"
    assert made.socket_directory == "/run/a/msg.sock"
    assert made.max_message_size == 1 << 20
    assert made.use_mmap is False
    assert made.close_timeout == 1.0
    assert made.trusted_users == {0}
    assert [parameter.name for parameter, _, is_set in made.items() if is_set] == [
        "lock directory",
        "use mmap",
        "msgd:max message size",
        "msgd:close timeout",
        "msgd:trusted users",
    ]


def test_paths_from_python_are_literal(tmp_path: Path) -> None:
    assert Config(lock_directory="/run/%h").lock_directory == "/run/%h"
    assert Config(lock_directory=tmp_path).lock_directory == str(tmp_path)


def test_all_bad_overrides_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Config(messaging_type="foo", lock_directory="run", send_queue_messages=0, log_level="11")
    compiled_in = ", ".join(module.name for module in _registry.MESSAGING_MODULES)
    assert caught.value.problems == (
        f"messaging type = foo: not compiled in; compiled in: {compiled_in}",
        "lock directory = run: not an absolute path",
        "msgd:send queue messages = 0: not from 1 to 10000000",
        "log level = 11: not from 0 to 10",
    )


def test_each_parameter_is_a_typed_keyword() -> None:
    assert set(ConfigValues.__annotations__) == {parameter.attribute for parameter in PARAMETERS}


@pytest.mark.parametrize(
    "overrides", [{"lock_dir": "/x"}, {"send_queue_messages": "1", "source": "/x"}, {"use_mmap": 1}]
)
def test_bugs_of_the_caller_are_type_errors(overrides: Any) -> None:
    with pytest.raises(TypeError):
        Config(**overrides)


def test_a_queue_holds_at_least_one_message(tmp_path: Path) -> None:
    complaint = "msgd:send queue bytes = 64M: less than msgd:max message size = 128M"
    with pytest.raises(ConfigError) as caught:
        Config(max_message_size="128M")
    assert caught.value.problems == (complaint,)
    with pytest.raises(ConfigError):
        Config(send_queue_bytes="128M").replace(max_message_size="129M")
    assert problems(tmp_path, "\nmsgd:max message size = 128M\n") == [f"2: {complaint}"]
    assert problems(tmp_path, "msgd:max message size = 128M\nmsgd:send queue bytes = 64M\n") == [f"2: {complaint}"]
    assert load(tmp_path, "msgd:max message size = 64M\n").send_queue_bytes == 64 << 20


def test_a_config_is_an_immutable_value() -> None:
    made = Config(log_level="1 auth:5")
    with pytest.raises(AttributeError):
        made.log_level = LogLevel("2")  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        made.new = 1  # type: ignore[attr-defined]
    assert made == Config(log_level=1)
    assert made != Config(log_level=2)
    assert len({made, Config(log_level=1), Config(log_level=2)}) == 2
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert copied == made
        assert dump(copied) == dump(made)


def test_replace_keeps_what_was_set(tmp_path: Path) -> None:
    loaded = load(tmp_path, "lock directory = /run/a\nmsgd:close timeout = 2\n")
    replaced = loaded.replace(lock_directory="/run/b%h", log_level=3)
    assert (replaced.lock_directory, replaced.socket_directory) == ("/run/b%h", "/run/b%h/msg.sock")
    assert (replaced.close_timeout, replaced.log_level, replaced.source) == (2.0, 3, loaded.source)
    assert loaded.lock_directory == "/run/a"
    assert replaced.replace().lock_directory == "/run/b%h"
    assert loaded.replace(socket_directory="/run/s").replace(lock_directory="/run/c").socket_directory == "/run/s"


def test_changes_on_reload() -> None:
    old = Config(log_level=1, lock_directory="/run/a")
    new = Config(log_level=5, clean_up_interval=1, lock_directory="/run/b", use_mmap="yes")
    assert changes_on_reload(old, old) == ()
    assert changes_on_reload(old, new) == ("lock directory", "msgd:socket directory")


# Files.


def test_a_file_is_read(tmp_path: Path) -> None:
    loaded = load(tmp_path, "[global]\nlockdir = /run/a\n debug level = 3 msgd:7\nmsgd:clean-up interval=0.5\n")
    assert (loaded.lock_directory, loaded.log_level, loaded.clean_up_interval) == ("/run/a", 7, 0.5)
    assert loaded.source == f"{tmp_path}/smb.conf"


def test_the_last_of_several_synonyms_counts(tmp_path: Path) -> None:
    assert load(tmp_path, "log level = junk\ndebug level = 3\n").log_level == 3
    assert load(tmp_path, "debug level = 3\nlog level = 4\n").log_level == 4


def test_a_missing_default_file_means_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "smb.conf"))
    assert Config.load() == Config()
    assert Config.load().source is None
    (tmp_path / "smb.conf").write_text("log level = 4\n")
    assert Config.load().log_level == 4
    assert Config.load().source == f"{tmp_path}/smb.conf"
    (tmp_path / "smb.conf").write_text("messaging type = high\n")
    with pytest.raises(ConfigError):
        Config.load()


def test_a_missing_named_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "none.conf")
    assert caught.value.problems == (f"{tmp_path}/none.conf: No such file or directory",)


def test_source_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smb.conf").touch()
    monkeypatch.chdir(tmp_path)
    assert Config.load("smb.conf").source == f"{tmp_path}/smb.conf"


def test_substitutions_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE", "/srv/state")
    host = os.uname().nodename
    loaded = load(
        tmp_path,
        "lock directory = /run/%h/%L\nprivate dir = %$(STATE)/%%h\npid directory = /run/%z%U%\nlog file = /l/log.%m\n",
    )
    assert loaded.lock_directory == f"/run/{host}/{host.partition('.')[0][:15].upper()}"
    assert loaded.private_dir == "/srv/state/%h"
    assert loaded.pid_directory == "/run/%z%U%"
    assert loaded.log_file == "/l/log.msgd"


def test_the_netbios_name_counts_wherever_it_is_set(tmp_path: Path) -> None:
    assert load(tmp_path, "lock dir = /run/%L\nNetBIOS Name = pier7\n").lock_directory == "/run/PIER7"


def test_an_unset_variable_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    assert problems(tmp_path, "msgd:listen = /run/%$(NOT_SET)\n") == [
        "1: msgd:listen = /run/%$(NOT_SET): the environment has no variable 'NOT_SET'"
    ]
    assert warnings(tmp_path, "lock dir = /run/%$(NOT_SET)\n") == [
        "1: lock directory = /run/%$(NOT_SET): the environment has no variable 'NOT_SET', so it is taken as it stands"
    ]


def test_all_problems_are_reported_in_the_order_of_the_lines(tmp_path: Path) -> None:
    content = """\
[global]
   msgd:send queue mesages = 3
   workgroup = \\
      A
   nonsense
   use mmap = maybe
   lock dir = run
   msgd:wonderful = yes
[share]
   msgd:close timeout = 3
"""
    assert problems(tmp_path, content) == [
        "2: msgd:send queue mesages: no such parameter; did you mean msgd:send queue messages?",
        "5: nonsense: neither a [section] nor name = value",
        "6: use mmap = maybe: not yes or no",
        "7: lock directory = run: not an absolute path; msgd uses /run, as a daemon of Samba does",
        "8: msgd:wonderful: no such parameter; msgparm -v lists them all",
        "10: msgd:close timeout: has no effect in a share; it belongs in [global]",
    ]


def test_a_problem_in_an_include_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("\n\nmsgd:close timeout = maybe\n")
    (complaint,) = problems(tmp_path, f"include = {tmp_path}/a.conf\n")
    assert complaint == f"{tmp_path}/a.conf:3: msgd:close timeout = maybe: not a number of seconds"


# A line that is Samba's never stops msgd.  What it says and whether Samba refuses it, and the value that is used.
SAMBAS = {
    "log level = 11": ("not from 0 to 10; msgd uses 10", False, 10),
    "log level =": ("no log level is given; msgd uses 0", False, 0),
    "log level = high": ("not a log level; a log level is a number,", False, 0),
    "log level = 3 auth:99 nonsense msgd:4": ("msgd uses 3 auth:10 msgd:4", False, 4),
    "log level = 3 msgd:77@/x": ("msgd uses 3 msgd:10", False, 10),
    "log level = 2 5": ("msgd uses 2", False, 2),
    'log file = "/l/log.%m"': ("the quotes are stripped", False, "/l/log.msgd"),
    "log file = log.smbd": ("not an absolute path; msgd uses /log.smbd", False, "/log.smbd"),
    "lock directory =": ("not an absolute path; msgd uses /,", False, "/"),
    'pid directory = "/x"': ('msgd uses /"/x"', False, '/"/x"'),
    "private dir = ../x": ("msgd uses /../x", False, "/../x"),
    "pid directory = /%h": ("Samba takes it as it stands", False, f"/{os.uname().nodename}"),
    "pid directory = /a\rb": ("the default is in force", False, _registry.PIDDIR),
    "max connections = -1": ("msgd uses 0,", False, 0),
    "max connections = many": ("msgd uses 0,", False, 0),
    "max connections =": ("msgd uses 0,", False, 0),
    "max connections = 5k": ("msgd uses 5,", False, 5),
    "max connections = 0x10": ("msgd uses 16,", False, 16),
    "max connections = 010": ("msgd uses 8,", False, 8),
    "max connections = 99999999999": ("msgd uses 100000,", False, 100_000),
    "use mmap = maybe": ("not yes or no", True, True),
    "use mmap =": ("not yes or no", True, True),
}


@pytest.mark.parametrize("line", SAMBAS)
def test_a_line_of_sambas_never_stops_msgd(tmp_path: Path, line: str) -> None:
    complaint, is_refused, value = SAMBAS[line]
    loaded = load(tmp_path, f"[global]\n{line}\n")
    (warning,) = loaded.warnings
    parameter = find(line.partition(" =")[0])
    assert parameter is not None
    assert complaint in warning.text
    assert str(warning).startswith(f"{tmp_path}/smb.conf:2: {parameter.name} = ")
    assert (warning.weight is Weight.REFUSED) == is_refused
    assert getattr(loaded, parameter.attribute) == value
    assert load(tmp_path, dump(loaded)) == loaded


@pytest.mark.parametrize("line", ["msgd:max clients = -1", "msgd:socket directory = x", "messaging type = DGRAMS"])
def test_a_line_of_msgds_own_does_stop_it(tmp_path: Path, line: str) -> None:
    (problem,) = problems(tmp_path, f"[global]\n{line}\n")
    assert problem.startswith(f"2: {line}: ")


def test_only_the_spelling_that_counts_is_judged(tmp_path: Path) -> None:
    assert load(tmp_path, "msgd:max clients = x\nmax connections = -1\n").max_clients == 0
    assert problems(tmp_path, "max connections = -1\nmsgd:max clients = x\n") != []


def test_a_lenient_reader_takes_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "smb.conf"
    path.write_text("messaging type = foo\nmsgd:send queue bytes = 1K\nmsgd:nonsense = 1\nlock dir = /run/x\n")
    loaded = Config.load(path, is_lenient=True)
    assert (loaded.lock_directory, loaded.messaging_type) == ("/run/x", _registry.MESSAGING_MODULES[0].name)
    assert [warning.origin.line for warning in loaded.warnings] == [1, 3]
    assert loaded.replace(lock_directory="/run/y").warnings == loaded.warnings


def test_the_message_about_an_unknown_type_lists_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = tuple(_registry.MessagingModule(name, f"msgd.backends.{name}", "") for name in ("tdb", "dgram"))
    monkeypatch.setattr(_registry, "MESSAGING_MODULES", modules)
    assert problems(tmp_path, "messaging type = foo\n") == [
        "1: messaging type = foo: not compiled in; compiled in: tdb, dgram"
    ]
    assert load(tmp_path, "messaging type = TDB\n").messaging_type == "tdb"


# Real files.


def test_a_large_real_file_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMB_STATE", "state")
    loaded = Config.load(OFFICE)
    assert {parameter.attribute: value for parameter, value, is_set in loaded.items() if is_set} == {
        "lock_directory": "/run/pier7",
        "private_dir": "/srv/state/private",
        "pid_directory": "/run/PIER7",
        "log_level": 1,
        "log_file": "/var/log/samba/log.msgd",
        "use_mmap": True,
        "max_message_size": 4 << 20,
        "send_queue_messages": 500,
        "trusted_users": {0, 65534},
    }
    assert loaded.log_level.text == "1 auth:3 auth_audit:5@/var/log/samba/audit.log winbind:2 full_audit:1"


@pytest.mark.skipif(shutil.which("testparm") is None, reason="Samba's testparm is not installed")
def test_everything_testparm_prints_loads(tmp_path: Path) -> None:
    printed = subprocess.run(["testparm", "-s", "-v", OFFICE], capture_output=True, check=True).stdout
    assert printed.count(b"\n") > 700
    path = tmp_path / "smb.conf"
    # testparm replaces %m with nothing, which leaves an include of a file that does not exist.
    kept = [line for line in printed.splitlines(keepends=True) if b"include = /etc/samba/machines/" not in line]
    path.write_bytes(b"".join(kept).replace(b"%$(SMB_STATE)", b"state"))
    loaded = Config.load(path)
    assert (loaded.lock_directory, loaded.pid_directory) == ("/run/pier7", "/run/PIER7")
    assert loaded.max_message_size == 4 << 20


# Properties.

PATHS = st.from_regex(r"/[!-\[\]-~ü/%]{0,30}", fullmatch=True)


def values_of(parameter: Parameter) -> st.SearchStrategy[object]:
    kind = parameter.kind
    if isinstance(kind, Boolean):
        return st.booleans()
    if isinstance(kind, Number):
        return st.integers(kind.minimum, kind.maximum)
    if isinstance(kind, Seconds):
        return st.floats(kind.minimum, kind.maximum).map(lambda seconds: round(seconds, 6))
    if isinstance(kind, Level):
        return st.sampled_from([0, 10, "3 auth:5", "1 msgd:9"])
    if isinstance(kind, TypeRules):
        return st.lists(st.sampled_from(["all", "-PING", "0xF000-0xFFFF", "13"])).map(tuple)
    if isinstance(kind, (Users, Groups)):
        return st.frozensets(st.integers(0, 0xFFFFFFFE), max_size=4)
    if isinstance(kind, SocketAddress):
        return st.sampled_from(["", "127.0.0.1:9100", "[::1]:1"]) | PATHS.map("unix:{}".format)
    if parameter.name == "log file":  # Samba strips quotes at its ends, so no smb.conf can name a path with them
        return PATHS.filter(lambda path: '"' not in path or '"' in path.strip('"'))
    return PATHS if kind.is_path else st.just("dgram")


OVERRIDES = st.fixed_dictionaries({}, optional={p.attribute: values_of(p) for p in PARAMETERS})


@given(overrides=OVERRIDES)
def test_what_is_dumped_reads_back(tmp_path: Path, overrides: Any) -> None:
    try:
        made = Config(**overrides)
    except ConfigError as error:
        assert "less than" in str(error)  # noqa: PT017  (the queue is too small for a message)
        return
    loaded = load(tmp_path, f"[global]\n{dump(made)}\n")
    assert loaded == made
    assert loaded.log_level.text == made.log_level.text


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    name=st.sampled_from([spelling for p in PARAMETERS for spelling in (p.name, p.attribute, *p.synonyms)]),
)
def test_no_text_raises_anything_but_config_error(tmp_path: Path, text: str, name: str) -> None:
    for content in (text, f"{name} = {text}\n"):
        try:
            made = load(tmp_path, content)
        except ConfigError as error:
            assert all(problem.isprintable() for problem in error.problems)  # noqa: PT017
        else:
            assert load(tmp_path, dump(made)) == made
