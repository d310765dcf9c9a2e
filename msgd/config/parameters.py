"""The table of parameters: everything msgd reads in smb.conf, once.

The table drives reading, checking, dumping, the man page and README's table.  A parameter that is in it needs only its
typed attribute in `Config` besides; a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgd import _registry
from msgd.config.kinds import (
    AbsolutePath,
    Boolean,
    Choice,
    Groups,
    Kind,
    Level,
    Number,
    Seconds,
    Size,
    SocketAddress,
    TypeRules,
    Users,
)

PREFIX = "msgd:"
"""What the names of msgd's own parameters begin with; all others in a smb.conf may be Samba's."""

_REFERENCE = re.compile("<([a-z ]+)>")


def fold(name: str) -> str:
    """Return a parameter's or section's name as it is compared: `Lock  Directory` and `lockdirectory` are the same."""
    return "".join(name.split()).lower()


@dataclass(frozen=True)
class Parameter:
    """One parameter of smb.conf.

    `default` is in smb.conf's syntax; `<lock directory>` in it stands for the value of that other parameter.
    `takes_effect` says whether a running daemon that re-reads its smb.conf obeys the new value (`reload`) or must be
    started anew (`start`).  `help` is one line.  Names and synonyms match in any case and with or without blanks.
    """

    name: str
    kind: Kind[Any]
    default: str
    help: str
    synonyms: tuple[str, ...] = ()
    takes_effect: Literal["start", "reload"] = "start"

    @property
    def attribute(self) -> str:
        """The Python name: `lock directory` is `lock_directory`, `msgd:close timeout` is `close_timeout`."""
        return self.name.removeprefix(PREFIX).replace(" ", "_").replace("-", "_")

    def default_value(self, values: Mapping[str, Any]) -> Any:
        """Return the value of the default; `values` by attribute are those of the parameters before it in the table."""
        text = _REFERENCE.sub(lambda match: values[_BY_FOLDED_NAME[fold(match[1])].attribute], self.default)
        return self.kind.parse(text)

    def dump(self, value: object) -> str:
        """Return the line `name = value` (no indent, no newline) that reads back as this value."""
        return f"{self.name} = {self.kind.format(value)}".rstrip()


def _messaging_types() -> tuple[str, ...]:
    return tuple(module.name for module in _registry.MESSAGING_MODULES)


PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "messaging type",
        Choice(_messaging_types, what="compiled in"),
        default=next(iter(_messaging_types()), ""),
        help="how messages travel: one of the messaging modules that are compiled in",
    ),
    Parameter(
        "lock directory",
        AbsolutePath(),
        default=_registry.LOCKDIR,
        help="where each process has its lock file (msg.lock/) and where names.tdb and messages.tdb are",
        synonyms=("lock dir",),
    ),
    Parameter(
        "private dir",
        AbsolutePath(),
        default=_registry.PRIVATEDIR,
        help="where Samba keeps what nobody else may read; Samba built from upstream has msg.sock/ there",
        synonyms=("private directory",),
    ),
    Parameter(
        "pid directory",
        AbsolutePath(),
        default=_registry.PIDDIR,
        help="where the daemons' pid files are",
    ),
    Parameter(
        "log level",
        Level(),
        default="0",
        help="how much is logged, 0 (what went wrong) to 10 (everything); the class msgd:N counts before the number",
        synonyms=("debug level",),
        takes_effect="reload",
    ),
    Parameter(
        "log file",
        AbsolutePath(optional=True),
        default="",
        help="the file the daemon logs to (%m is msgd); nothing means stderr in the foreground, else syslog",
        takes_effect="reload",
    ),
    Parameter(
        "use mmap",
        Boolean(),
        default="yes",
        help="map tdb files into memory; say no on file systems where that does not work",
    ),
    Parameter(
        "msgd:tdb mutexes",
        Boolean(),
        default="yes",
        help="lock messages.tdb by mutexes in its memory, which is fast; no means fcntl locks, as Samba 3.0 shares it",
    ),
    Parameter(
        "msgd:socket directory",
        AbsolutePath(),
        default="<lock directory>/msg.sock",
        help="where each process has its socket: as Debian's Samba; set <private dir>/msg.sock for upstream's",
    ),
    Parameter(
        "msgd:max message size",
        Size(1 << 10, 1 << 30),
        default="16M",
        help="the longest message that is sent or taken",
    ),
    Parameter(
        "msgd:send queue messages",
        Number(1, 10_000_000),
        default="10000",
        help="how many messages wait for one destination that does not read before a send fails",
    ),
    Parameter(
        "msgd:send queue bytes",
        Size(1 << 10, 64 << 30),
        default="64M",
        help="how many bytes wait for one destination that does not read; at least msgd:max message size",
    ),
    Parameter(
        "msgd:close timeout",
        Seconds(0, 3600),
        default="5",
        help="how long closing waits for queued messages to leave",
    ),
    Parameter(
        "msgd:clean-up interval",
        Seconds(0, 86400),
        default="60",
        help="how often the daemon cleans up after dead processes; 0 is never",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:reassembly timeout",
        Seconds(0.01, 3600),
        default="60",
        help="how long the rest of a fragmented message is awaited",
    ),
    Parameter(
        "msgd:reassembly messages",
        Number(1, 65536),
        default="16",
        help="how many unfinished fragmented messages of one sending process are kept",
    ),
    Parameter(
        "msgd:reassembly bytes",
        Size(1 << 10, 64 << 30),
        default="256M",
        help="how many bytes of unfinished fragmented messages are kept in all; at least one message always is",
    ),
    Parameter(
        "msgd:connection cache",
        Number(1, 10_000),
        default="10",
        help="stream: how many connections to other processes are kept open while nothing is on its way on them",
    ),
    Parameter(
        "msgd:max connections",
        Number(4, 100_000),
        default="256",
        help="stream: how many connections between processes are open at most, half of them opened here and half by"
        " other processes; it is not Samba's max connections, which is the gateway's msgd:max clients",
    ),
    Parameter(
        "msgd:half-open connections",
        Number(1, 10_000),
        default="64",
        help="stream: how many processes may have connected and not said a word yet; the oldest goes first",
    ),
    Parameter(
        "msgd:receive buffer bytes",
        Size(1 << 10, 64 << 30),
        default="256M",
        help="stream: how much memory long messages take that have begun to come, those of all connections together",
    ),
    Parameter(
        "msgd:gather bytes",
        Size(0, 16 << 20),
        default="64K",
        help="stream: how many bytes of handlers' messages to one process are gathered before they are written",
    ),
    Parameter(
        "msgd:trusted users",
        Users(),
        default="",
        help="whose messages are heard besides root's and those of the process's own user",
    ),
    Parameter(
        "msgd:listen",
        AbsolutePath(optional=True),
        default="<pid directory>/msgd.sock",
        help="the gateway's socket, for who has no endpoint of its own (docs/gateway.md); nothing means no gateway;"
        " a socket that systemd passes (msgd.socket) counts instead",
    ),
    Parameter(
        "msgd:allow users",
        Users(),
        default="",
        help="gateway: who may connect besides root and the daemon's own user",
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
        default="all -DEBUG -SHUTDOWN",
        help="gateway: which types of messages clients may send that are not root's; later rules overrule earlier ones",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:max clients",
        Number(0, 100_000),
        default="512",
        help="gateway: how many clients are connected at most; 0 is no limit, as in Samba, whose max connections it is"
        " (msgd:max connections is another, the stream's)",
        synonyms=("max connections",),
        takes_effect="reload",
    ),
    Parameter(
        "msgd:max clients per user",
        Number(1, 100_000),
        default="256",
        help="gateway: how many clients of one user are connected at most; root is not held to it",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:client line bytes",
        Size(1 << 10, 1 << 30),
        default="1M",
        help="gateway: the longest line a client may send; who sends a longer one is disconnected",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:client buffer bytes",
        Size(1 << 10, 1 << 30),
        default="4M",
        help="gateway: how much waits for a client that does not read before nothing more is taken in for it",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:client stall timeout",
        Seconds(0.01, 86400),
        default="30",
        help="gateway: how long a client may read nothing of what waits for it; then it is disconnected",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:client idle timeout",
        Seconds(0, 86400),
        default="600",
        help="gateway: how long a client may say nothing that has not registered for any message; 0 is for ever",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:client memory",
        Size(64 << 20, 1 << 40),
        default="256M",
        help="gateway: how much memory the connection process of a client may take",
        takes_effect="reload",
    ),
    Parameter(
        "msgd:metrics",
        SocketAddress(),
        default="",
        help="where the daemon tells Prometheus how it is doing, unix:/path or 127.0.0.1:port; nothing means nowhere",
    ),
)

_BY_FOLDED_NAME = {fold(name): p for p in PARAMETERS for name in (p.name, *p.synonyms)}


def find(name: str) -> Parameter | None:
    """Return the parameter of this name or synonym in any spelling, or None."""
    return _BY_FOLDED_NAME.get(fold(name))


def no_such_parameter(name: str) -> str:
    """Return what to say of a name that find() does not know: the nearest that there is, or where to see them all."""
    import difflib  # only a mistake needs it

    close = difflib.get_close_matches(fold(name), _BY_FOLDED_NAME, n=1)
    hint = f"did you mean {_BY_FOLDED_NAME[close[0]].name}?" if close else "msgparm -v shows all there are"
    return f"no such parameter; {hint}"
