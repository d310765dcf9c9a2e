# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The closed set of errors that msgd raises.

Rule 1.  An error is raised where the fault is known.  Its text is one line for a person: what is wrong, where, and
         what to do about it.
Rule 2.  Nothing converts or hides an error on its way up.  The programs print its text and exit with status 1.
Rule 3.  Where Python has an error of the same meaning, ours is one of that kind, too: a NoSuchProcess is a
         ProcessLookupError, a ReplyTimeout a TimeoutError.  Its errno is not set.  TransportError is no OSError: it
         tells what one has meant, and code that catches what the system says would take it for that.
Rule 4.  An argument of the wrong Python type or range is a bug of the caller and raises TypeError or ValueError.

docs/errors-and-log.md lists when each error is raised and what the caller can do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping


class MsgdError(Exception):
    """The base class of all errors of this package.

    `dst`: the destination (a ServerID) and `type`: the message type that it is about, where it is about a message.
    """

    def __init__(self, *args: object, dst: object | None = None, message_type: int | None = None) -> None:
        super().__init__(*args)
        self.dst = dst
        self.type = message_type


class ConfigError(MsgdError):
    """A parameter in smb.conf, or one given in its place, is wrong.

    `problems` holds one line for each fault, with the file and the line number if the fault is in a file.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class BackendUnavailable(MsgdError):
    """The messaging type is not compiled in, or it cannot work in this process; the text names what it needs."""


class UnsafeDirectory(MsgdError):
    """A directory or file in which processes meet is unsafe: a symbolic link, another owner, or writable by others."""


class TransportError(MsgdError):
    """The operating system refused: the disk is full, no descriptors are left, a permission is missing."""


class NoSuchProcess(MsgdError, ProcessLookupError):
    """The destination does not exist, has closed its endpoint, or its pid now belongs to another process."""


class MessageTooLarge(MsgdError, ValueError):
    """The data is longer than `msgd:max message size`, or the transport cannot carry its type or descriptors."""


class QueueFull(MsgdError):
    """The destination does not read and its queue is at its bound.  Nothing was sent."""


class ForkedContext(MsgdError):
    """A context that was made before fork() is used in the child, where reinit() must be called first."""


class ContextClosed(MsgdError):
    """The context has been closed."""


class NoHandler(MsgdError, LookupError):
    """The process asked lives, and has no handler for messages of this type: it will not answer."""


class AlreadyDispatching(MsgdError):
    """Another thread dispatches the messages of this process; only one thread may at a time."""


class ReplyTimeout(MsgdError, TimeoutError):
    """No answer came before the timeout."""


class HandlerFailed(MsgdError):
    """A subscriber of a topic has not handled a publication: its callback has raised, or its queue was full."""


class NotAcknowledged(MsgdError):
    """Not every living subscriber has said that it has handled a publication.

    `failures`: what kept the others, by pid.
    """

    def __init__(self, text: str, failures: Mapping[int, MsgdError]) -> None:
        super().__init__(text)
        self.failures = failures


class AlreadyRunning(MsgdError):
    """Another instance holds the pid file, or listens on the socket."""


class NotAllowed(MsgdError, PermissionError):
    """The gateway does not let this user connect, or does not let it send this type of message."""


class GatewayClosed(MsgdError, ConnectionError):
    """The gateway is not running, or it has ended the connection; the text is its parting message if it sent one."""


class MalformedMessage(MsgdError):
    """Bytes do not follow their format.  dispatch() counts and drops them; only callers of msgd.wire see this error."""


_HINTS = {
    errno.EMFILE: "; close descriptors or raise `ulimit -n`",
    errno.ENFILE: "; the whole machine is out of descriptors",
    errno.ENOSPC: "; make room on the disk",
}


def system_error(doing: str, error: OSError | MemoryError) -> TransportError:
    """What the system has refused, as an error of the set; `doing` says where."""
    if isinstance(error, MemoryError):
        return TransportError(f"{doing}: Cannot allocate memory")
    return TransportError(f"{doing}: {error.strerror}{_HINTS.get(error.errno or 0, '')}")


def is_of_system(error: BaseException) -> bool:
    """Whether the system has refused something: not an error of this set, nor one that a program has made itself.

    What a signal's handler raises (a TimeoutError, say) has no errno and is none of ours to convert.
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)
