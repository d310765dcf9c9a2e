# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The table of parameters: everything that msgd reads from smb.conf, each thing once.

The reader, the checker, the dump (`msgparm -v`), the manual page and docs/parameters.md are all made from this table.
To add a parameter, add a row here and an attribute with its type to `Config`; a test compares the two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from msgd import _registry
from msgd.config.kinds import (
    AbsolutePath,
    Boolean,
    Choice,
    Groups,
    Kind,
    Level,
    Number,
    NumberOrAutomatic,
    Seconds,
    Size,
    SocketAddress,
    TypeRules,
    Users,
)

PREFIX = "msgd:"
"""The prefix of msgd's own parameters. A name without it may be one of Samba's."""

_REFERENCE = re.compile("<([a-z ]+)>")


def fold(name: str) -> str:
    """Return the form in which names of parameters and sections are compared: without blanks, in lower case."""
    return "".join(name.split()).lower()


class Parameter(NamedTuple):
    """One parameter of smb.conf.

    `default` is in smb.conf's syntax; `<lock directory>` in it stands for the value of that other parameter.
    `help` is one line, as a clause: it begins in lower case and has no full stop.
    `takes_effect` says when a running daemon takes up a new value: when it re-reads its smb.conf (`reload`), or only
    when it is restarted (`start`).  `is_configured` says that the default was chosen when msgd was configured, and so
    differs from one machine to the next.  Names and synonyms match in any case, with or without blanks.
    """

    name: str
    kind: Kind[Any]
    default: str
    help: str
    synonyms: tuple[str, ...] = ()
    takes_effect: Literal["start", "reload"] = "start"
    is_configured: bool = False

    @property
    def attribute(self) -> str:
        """The Python name: `lock directory` is `lock_directory`, `msgd:close timeout` is `close_timeout`."""
        return self.name.removeprefix(PREFIX).replace(" ", "_").replace("-", "_")

    @property
    def sentence(self) -> str:
        """The help text as a sentence, for manuals."""
        return f"{self.help[:1].upper()}{self.help[1:]}."

    def default_value(self, values: Mapping[str, Any]) -> Any:
        """Return the default value; `values` holds, by attribute, those of the parameters before it in the table."""
        text = _REFERENCE.sub(lambda match: values[_BY_FOLDED_NAME[fold(match[1])].attribute], self.default)
        return self.kind.parse(text)

    def dump(self, value: object) -> str:
        """Return the line `name = value`, without indent and newline, that reads back as this value."""
        return f"{self.name} = {self.kind.format(value)}".rstrip()


def _messaging_types() -> tuple[str, ...]:
    return tuple(module.name for module in _registry.MESSAGING_MODULES)


def _left_out() -> Mapping[str, str]:
    return _registry.LEFT_OUT


PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "messaging type",
        Choice(_messaging_types, what="compiled in", left_out=_left_out),
        default=next(iter(_messaging_types()), ""),
        help="the transport that carries messages, one of the messaging modules that were compiled in; all processes"
        " that share a lock directory must use the same one",
        is_configured=True,
    ),
    Parameter(
        "lock directory",
        AbsolutePath(),
        default=_registry.LOCKDIR,
        help="where the lock files of all processes (msg.lock/), names.tdb and messages.tdb are",
        is_configured=True,
        synonyms=("lock dir",),
    ),
    Parameter(
        "private dir",
        AbsolutePath(),
        default=_registry.PRIVATEDIR,
        help="the directory that Samba keeps for root only; a Samba built from upstream has its sockets (msg.sock/)"
        " there",
        is_configured=True,
        synonyms=("private directory",),
    ),
    Parameter(
        "state directory",
        AbsolutePath(),
        default=os.path.dirname(_registry.PRIVATEDIR),
        help="where Samba's winbindd has its cache, which msgcontrol's online and offline change",
        is_configured=True,
    ),
    Parameter(
        "pid directory",
        AbsolutePath(),
        default=_registry.PIDDIR,
        help="where the daemons have their pid files",
        is_configured=True,
    ),
    Parameter(
        "clustering",
        Boolean(),
        default="no",
        help="whether this machine is a node of a ctdb cluster, so that messages reach processes on other nodes"
        " (docs/clustering.md); needs the messaging type dgram or stream",
    ),
    Parameter(
        "ctdbd socket",
        AbsolutePath(optional=True),
        default="/run/ctdb/ctdbd.socket",
        help="clustering: where this node's ctdbd listens; if empty, at the default",
    ),
    Parameter(
        "ctdb timeout",
        Number(0, 86_400_000),
        default="0",
        help="clustering: how many milliseconds a call that asks another node waits for the answer; 0, at which Samba"
        " waits for ever, stands for 10 seconds",
    ),
    Parameter(
        "log level",
        Level(),
        default="0",
        help="how much is logged, from 0 (errors only) to 10 (everything); a level for the class msgd overrides the"
        " general one",
        synonyms=("debug level",),
        takes_effect="reload",
    ),
    Parameter(
        "log file",
        AbsolutePath(optional=True),
        default="",
        help="the file that the daemon logs to, in whose name %m stands for msgd; if empty, it logs to stderr in the"
        " foreground and to syslog otherwise",
        takes_effect="reload",
    ),
    Parameter(
        "use mmap",
        Boolean(),
        default="yes",
        help="whether messages.tdb is mapped into memory; set it to no on file systems that do not support that, or to"
        " survive that somebody cuts the file off while it is in use",
    ),
    Parameter(
        "msgd:tdb mutexes",
        Boolean(),
        default="yes",
        help="whether messages.tdb is locked with mutexes in shared memory, which is fast; set it to no to use fcntl"
        " locks and share the file with Samba 3.0",
    ),
    Parameter(
        "msgd:samba3",
        Boolean(),
        default="no",
        help="tdb: whether processes of Samba 3.0 are accepted as peers: those that have messages.tdb open, as root"
        " sees in /proc, and catch SIGUSR1; to be used with msgd:tdb mutexes = no",
    ),
    Parameter(
        "msgd:socket directory",
        AbsolutePath(),
        default="<lock directory>/msg.sock",
        help="where each process has its socket; the default is that of Debian's Samba, and a Samba built from upstream"
        " uses <private dir>/msg.sock",
    ),
    Parameter(
        "msgd:max message size",
        Size(1 << 10, 1 << 30),
        default="16M",
        help="the longest message that can be sent or received",
    ),
    Parameter(
        "msgd:send queue messages",
        Number(1, 10_000_000),
        default="10000",
        help="how many messages may wait for one destination that does not read before a send fails with QueueFull",
    ),
    Parameter(
        "msgd:send queue bytes",
        Size(1 << 10, 64 << 30),
        default="64M",
        help="how many bytes may wait for one destination that does not read before a send fails with QueueFull; at"
        " least msgd:max message size",
    ),
    Parameter(
        "msgd:close timeout",
        Seconds(0, 3600),
        default="5",
        help="how long closing a context waits for its queued messages to be sent",
    ),
    Parameter(
        "msgd:clean-up interval",
        Seconds(0, 86400),
        default="60",
        help="how often the daemon removes what dead processes have left behind; 0 means never",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:reassembly timeout",
        Seconds(0.01, 3600),
        default="60",
        help="how long an incomplete fragmented message is kept while its missing fragments are awaited",
    ),
    Parameter(
        "msgd:reassembly messages",
        Number(1, 65536),
        default="16",
        help="how many incomplete fragmented messages of one sender are kept",
    ),
    Parameter(
        "msgd:reassembly bytes",
        Size(1 << 10, 64 << 30),
        default="256M",
        help="how many bytes of incomplete fragmented messages are kept in total; one is kept whatever its size",
    ),
    Parameter(
        "msgd:connection cache",
        NumberOrAutomatic(1, 100_000),
        default="0",
        help="stream: how many idle connections to other processes are kept open; automatic: as many as there may be",
    ),
    Parameter(
        "msgd:max connections",
        NumberOrAutomatic(4, 100_000),
        default="0",
        help="stream: how many connections between this process and others may be open, half of them opened by this"
        " process and half by others; automatic: half of the descriptors that the process may open; Samba's max"
        " connections is msgd:max clients instead",
    ),
    Parameter(
        "msgd:half-open connections",
        Number(1, 10_000),
        default="64",
        help="stream: how many processes may have connected without having sent anything; beyond that the oldest such"
        " connection is closed",
    ),
    Parameter(
        "msgd:receive buffer bytes",
        Size(1 << 10, 64 << 30),
        default="256M",
        help="stream: how much memory partly received long messages may use, on all connections together",
    ),
    Parameter(
        "msgd:gather bytes",
        Size(0, 16 << 20),
        default="64K",
        help="stream: how many bytes of messages from handlers to one process are gathered before they are written",
    ),
    Parameter(
        "msgd:trusted users",
        Users(),
        default="",
        help="the users whose messages are accepted besides those of root and of the user that the process runs as",
    ),
    Parameter(
        "msgd:monitor",
        Boolean(),
        default="no",
        help="whether root, and the user that the process runs as, may see its messages with msgcontrol monitor",
    ),
    Parameter(
        "msgd:listen",
        AbsolutePath(optional=True),
        default="<pid directory>/msgd.sock",
        help="the gateway's socket, for clients that have no endpoint of their own (docs/gateway.md); if empty, there"
        " is no gateway; a socket that systemd passes (msgd.socket) takes precedence",
    ),
    Parameter(
        "msgd:allow users",
        Users(),
        default="",
        help="gateway: the users who may connect besides root and the daemon's own user",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:allow groups",
        Groups(),
        default="",
        help="gateway: the groups whose members may connect",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:allow types",
        TypeRules(),
        default="PING REQ_DEBUGLEVEL 0xF000-0xFFFFFFFF",
        help="gateway: the message types that clients of users other than root may send; later rules override earlier"
        " ones",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:max clients",
        Number(0, 100_000),
        default="512",
        help="gateway: how many clients may be connected at once; 0 means no limit; not to be confused with msgd:max"
        " connections, which belongs to the stream transport",
        synonyms=("max connections",),
        takes_effect="reload",
    ),
    Parameter(
        "msgd:max clients per user",
        Number(1, 100_000),
        default="32",
        help="gateway: how many clients of one user may be connected at once; root is exempt",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:client line bytes",
        Size(1 << 10, 1 << 30),
        default="1M",
        help="gateway: the longest line that a client may send; a client that sends a longer one is disconnected",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:client buffer bytes",
        Size(1 << 10, 1 << 30),
        default="4M",
        help="gateway: how much output may wait for a client that does not read before no more messages are taken in"
        " for it",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:client stall timeout",
        Seconds(0.01, 86400),
        default="30",
        help="gateway: how long a client may leave waiting output unread before it is disconnected",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:client idle timeout",
        Seconds(0, 86400),
        default="600",
        help="gateway: how long a client that has not registered for any message may send nothing before it is"
        " disconnected; 0 means for ever",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:client memory",
        Size(64 << 20, 1 << 40),
        default="256M",
        help="gateway: how much memory the connection process of one client may use",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:user memory",
        Size(64 << 20, 1 << 44),
        default="512M",
        help="gateway: how much memory the connection processes of one user may use together, beyond what each has when"
        " it starts; root is exempt",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:metrics",
        SocketAddress(),
        default="",
        help="where the daemon serves metrics to Prometheus, unix:/path or 127.0.0.1:port; if empty, nowhere",
    ),
)

_BY_FOLDED_NAME = {fold(name): p for p in PARAMETERS for name in (p.name, *p.synonyms)}


def find(name: str) -> Parameter | None:
    """Return the parameter that has this name or synonym, in any spelling; None if there is none."""
    return _BY_FOLDED_NAME.get(fold(name))


def no_such_parameter(name: str) -> str:
    """Return an error message for a name that find() does not know. It suggests the nearest name, if one is near."""
    import difflib  # slow to import, and needed only here

    folded = fold(name)
    common = PREFIX if folded.startswith(PREFIX) else ""  # it would make any two of msgd's names look alike
    names = {one.removeprefix(common): found for one, found in _BY_FOLDED_NAME.items() if one.startswith(common)}
    close = difflib.get_close_matches(folded.removeprefix(common), names, n=1)
    hint = f"did you mean {names[close[0]].name}?" if close else "msgparm -v lists them all"
    return f"no such parameter; {hint}"
