"""The closed set of errors msgd raises.

Each is raised where the fault is known and carries one line for a person: what is wrong, where, and what to do.
The programs print that line and exit 1; nothing else converts or hides it.  Arguments of the wrong Python type are
the caller's bug and stay TypeError or ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable


class MsgdError(Exception):
    """Base of all errors of this package."""


class ConfigError(MsgdError):
    """smb.conf (or a value given instead of it) is wrong.

    `problems` holds one line a fault, each with file and line number where there are any.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class BackendUnavailable(MsgdError):
    """The messaging type is not compiled in, or cannot work in this process (its requirement is named)."""


class UnsafeDirectory(MsgdError):
    """A directory or file of the rendezvous is not what it must be: a link, another owner, open to everybody."""


class TransportError(MsgdError):
    """The operating system refused: a full disk, no file descriptors left, a path too long, no permission."""


class NoSuchProcess(MsgdError):
    """The destination does not exist, has closed its endpoint, or is another process than the one addressed."""


class MessageTooLarge(MsgdError):
    """The data is longer than `max message size`, or carries more file descriptors than a message can."""


class QueueFull(MsgdError):
    """The destination does not read and its queue is at its bound; nothing was sent."""


class ForkedContext(MsgdError):
    """A context made before fork() is used in the child; call reinit() there first."""


class ContextClosed(MsgdError):
    """The context has been closed."""


class ReplyTimeout(MsgdError):
    """No answer came within the time given."""


class AlreadyRunning(MsgdError):
    """Another instance holds the pid file."""


class NotAllowed(MsgdError):
    """The gateway does not let this user in, or does not let it send this type of message."""


class GatewayClosed(MsgdError):
    """The gateway is not there or has ended the connection; the text is its last word, where it had one."""


class MalformedMessage(MsgdError):
    """Bytes that are not what the format says.  Counted and dropped inside dispatch; seen by users of wire only."""
