# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`Config` holds the checked settings of one process, with a typed attribute for each parameter.

It is made once, when a process starts, and from then on only read: its attributes are plain values.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from msgd import _registry
from msgd.config.kinds import Boolean, LogLevel
from msgd.config.parameters import PARAMETERS, PREFIX, Parameter, find, fold, no_such_parameter
from msgd.config.problems import Origin, Problem, Weight, shown
from msgd.config.reader import Setting, read
from msgd.config.substitution import server_names
from msgd.config.tolerance import Found, find_value
from msgd.errors import ConfigError
from msgd.immutable import Immutable

if TYPE_CHECKING:
    from msgd.config.values import ConfigValues

DEFAULT_PATH = os.path.join(_registry.CONFIGDIR, "smb.conf")
"""The file that `Config.load()` reads unless another is named."""

_BY_ATTRIBUTE = {parameter.attribute: parameter for parameter in PARAMETERS}


class Config(Immutable):
    """The values of all parameters in the table of `msgd.config.parameters`, under their Python names.

    Two configurations are equal if all values are equal, whatever their source.  docs/parameters.md says what each
    parameter means.  Times are in seconds and sizes in bytes.
    """

    __slots__ = (*_BY_ATTRIBUTE, "_given", "source", "warnings")

    messaging_type: str
    lock_directory: str
    private_dir: str
    state_directory: str
    pid_directory: str
    clustering: bool
    ctdbd_socket: str
    ctdb_timeout: int
    """Milliseconds, as Samba has it."""
    log_level: LogLevel
    log_file: str
    use_mmap: bool
    tdb_mutexes: bool
    samba3: bool
    socket_directory: str
    max_message_size: int
    send_queue_messages: int
    send_queue_bytes: int
    close_timeout: float
    clean_up_interval: float
    reassembly_timeout: float
    reassembly_messages: int
    reassembly_bytes: int
    connection_cache: int
    max_connections: int
    half_open_connections: int
    receive_buffer_bytes: int
    gather_bytes: int
    trusted_users: frozenset[int]
    """Uids."""
    monitor: bool
    listen: str
    allow_users: frozenset[int]
    """Uids."""
    allow_groups: frozenset[int]
    """Gids."""
    allow_types: tuple[str, ...]
    """Rules for message types, as text; `msgd.programs.type_rules` interprets them."""
    max_clients: int
    max_clients_per_user: int
    client_line_bytes: int
    client_buffer_bytes: int
    client_stall_timeout: float
    client_idle_timeout: float
    client_memory: int
    user_memory: int
    metrics: str
    source: str | None
    """The absolute path of the smb.conf that was read; None if none was."""
    warnings: tuple[Problem, ...]
    """What msgd passed over in the file, with the file and line of each, in their order; msgparm shows them."""
    _given: frozenset[str]
    """The attributes that were set by the file or by the caller, and not by default."""

    def __init__(self, **overrides: Unpack[ConfigValues]) -> None:
        """Set the attributes that are named, and leave the others at their defaults.

        A value is of the attribute's Python type, or text in smb.conf's syntax.  smb.conf's substitutions are not made
        in paths.  ConfigError lists all values that are not valid; an unknown name or a wrong type is a TypeError.
        """
        self._fill(_check(overrides), source=None, origins={})

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, *, is_lenient: bool = False) -> Config:
        """Read a smb.conf.  Without `path` that is DEFAULT_PATH, which may be missing: all defaults are then in force.

        A line that is Samba's own is no error, whatever is wrong with it: it becomes a warning.  ConfigError lists all
        problems, each with its file and line.  If `is_lenient`, only a file that cannot be read raises it: bad lines of
        msgd's become warnings as well.
        """
        if path is None and not os.path.lexists(DEFAULT_PATH):
            return cls()
        source = DEFAULT_PATH if path is None else os.fsdecode(path)
        settings, bad_form, remarks, overridden = read(source)
        values, origins, bad_values = _interpret(settings)
        problems = sorted((*bad_form, *bad_values, *_refused(overridden)))
        if not is_lenient and any(problem.weight is Weight.OWN for problem in problems):
            raise ConfigError(map(str, problems))
        if is_lenient:
            values = _without_contradiction(values)
        config = cls.__new__(cls)
        config._fill(values, os.path.abspath(source), origins)
        config._set(warnings=tuple(sorted((*problems, *remarks))))
        return config

    def replace(self, **overrides: Unpack[ConfigValues]) -> Config:
        """Return a copy in which the attributes that are named have other values; defaults are worked out again."""
        values = {name: getattr(self, name) for name in self._given} | _check(overrides)
        config = type(self).__new__(type(self))
        config._fill(values, self.source, origins={})
        config._set(warnings=self.warnings)
        return config

    def items(self) -> Iterator[tuple[Parameter, Any, bool]]:
        """Yield each parameter of the table with its value and whether that was set, as opposed to the default."""
        for parameter in PARAMETERS:
            yield parameter, getattr(self, parameter.attribute), parameter.attribute in self._given

    @classmethod
    def _compared(cls) -> tuple[str, ...]:
        return tuple(_BY_ATTRIBUTE)

    def _fill(self, values: Mapping[str, Any], source: str | None, origins: Mapping[str, Origin]) -> None:
        """Set all attributes to the checked values or the defaults.

        Raises ConfigError if two values contradict each other.
        """
        everything: dict[str, Any] = {}
        for parameter in PARAMETERS:
            name = parameter.attribute
            everything[name] = values[name] if name in values else parameter.default_value(everything)
        self._set(**everything, source=source, warnings=(), _given=frozenset(values))
        if self.send_queue_bytes < self.max_message_size:
            raise ConfigError(_queue_too_small(everything, origins))


def changes_on_reload(old: Config, new: Config) -> tuple[str, ...]:
    """Return the names of the parameters that differ but take effect only when a process starts."""
    return tuple(
        parameter.name
        for parameter, value, _ in new.items()
        if parameter.takes_effect == "start" and value != getattr(old, parameter.attribute)
    )


def reloaded(old: Config, new: Config) -> Config:
    """Return the configuration of a daemon that started with `old` and has reloaded `new`.

    Parameters that take effect only at the start keep their old values.
    """
    return old.replace(
        **{
            parameter.attribute: value
            for parameter, value, _ in new.items()
            if parameter.takes_effect == "reload" and value != getattr(old, parameter.attribute)
        }
    )


def _check(overrides: Mapping[str, object]) -> dict[str, Any]:
    """Return the checked values of overrides; ConfigError for bad values, TypeError for unknown names."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in overrides.items():
        parameter = _BY_ATTRIBUTE.get(name)
        if parameter is None:
            raise TypeError(f"msgd has no parameter {name!r}; it has: {', '.join(_BY_ATTRIBUTE)}")
        try:
            values[name] = parameter.kind.check(value)
        except ValueError as error:
            problems.append(f"{parameter.name} = {shown(str(value))}: {error}")
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
    if problems:
        raise ConfigError(problems)
    return values


def _interpret(settings: Iterable[Setting]) -> tuple[dict[str, Any], dict[str, Origin], list[Problem]]:
    """Return the values of msgd's parameters in a file's settings, where each is set, and the problems.

    If a parameter is set under several of its names, the last one counts.  Samba's own parameters are ignored.
    """
    problems: list[Problem] = []
    own: dict[Parameter, Setting] = {}
    netbios_name = ""
    for setting in settings:
        parameter = find(setting.name)
        if parameter is not None:
            own[parameter] = setting
        elif fold(setting.name) == "netbiosname":
            netbios_name = setting.value
        elif fold(setting.name).startswith(PREFIX):
            problems.append(Problem(setting.origin, f"{shown(setting.name)}: {no_such_parameter(setting.name)}"))
    # To Samba's daemons %m is their own name, until they know the client.
    names = server_names(netbios_name) | {"m": "msgd"}
    values: dict[str, Any] = {}
    for parameter, setting in own.items():
        found = find_value(parameter, setting.name, setting.value, names)
        if found.has_value:
            values[parameter.attribute] = found.value
        if found.complaint:
            problems.append(_complaint(parameter, setting, found))
    return values, {parameter.attribute: setting.origin for parameter, setting in own.items()}, problems


def _refused(overridden: Iterable[Setting]) -> Iterator[Problem]:
    """Yield what makes Samba refuse the file in settings that do not count."""
    for setting in overridden:
        parameter = find(setting.name)
        if parameter is not None and isinstance(parameter.kind, Boolean):
            found = find_value(parameter, setting.name, setting.value, {})
            if found.weight is Weight.REFUSED:
                yield _complaint(parameter, setting, found)


def _complaint(parameter: Parameter, setting: Setting, found: Found) -> Problem:
    return Problem(setting.origin, f"{parameter.name} = {shown(setting.value)}: {found.complaint}", found.weight)


def _without_contradiction(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without the two sizes that _fill() compares: the defaults fit each other."""
    return {name: value for name, value in values.items() if name not in ("send_queue_bytes", "max_message_size")}


def _queue_too_small(values: Mapping[str, Any], origins: Mapping[str, Origin]) -> str:
    queue, size = _BY_ATTRIBUTE["send_queue_bytes"], _BY_ATTRIBUTE["max_message_size"]
    origin = origins.get(queue.attribute) or origins.get(size.attribute)
    where = f"{origin}: " if origin else ""
    return f"{where}{queue.dump(values[queue.attribute])}: less than {size.dump(values[size.attribute])}"
