# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol publish, subscribe and topics: what programs do with msgd.pubsub, for the shell.

Rule 1. They meet the programs where PubSub() does, or where --directory or --name says; with -s in the lock directory
        of the smb.conf.
Rule 2. Data is text, and what comes from a file or from stdin is bytes, unless --as says otherwise.
Rule 3. subscribe prints a line for each event, and tells gaps on stderr, and with --json on stdout, too.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from msgd.config import Config
from msgd.errors import MsgdError
from msgd.programs import cli
from msgd.pubsub import Event, Gap, Publication, PubSub
from msgd.pubsub.place import place
from msgd.tools.msgcontrol.subprogram import Actions
from msgd.wire.pubsub import Data

_PROGRAM = "msgcontrol"
_TIMEOUT = 10.0
_KINDS = ("text", "bytes", "json")


def _add_common(parser: cli.Parser) -> None:
    add = parser.add_argument
    add("--directory", metavar="DIR", help="the directory where the programs meet")
    add("--name", metavar="NAME", help="the name of the private directory where the programs meet")
    add("--json", action="store_true", help="print JSON")
    text = f"how long to wait for answers (default: {_TIMEOUT:g})"
    add("-t", "--timeout", metavar="SECONDS", type=cli.seconds, default=_TIMEOUT, help=text)


def _add_publish(parser: cli.Parser) -> None:
    _add_common(parser)
    add = parser.add_argument
    add("--as", dest="kind", choices=_KINDS, help="what the data is")
    add("--acked", action="store_true", help="wait until every subscriber has handled it")
    add("topic", metavar="TOPIC", help="what to publish to")
    add("data", metavar="DATA", nargs="?", default="", help="text, or with @FILE a file, or with - stdin")


def _add_subscribe(parser: cli.Parser) -> None:
    _add_common(parser)
    parser.add_argument("--count", metavar="NUMBER", type=_count, help="end after so many events")
    parser.add_argument("topic", metavar="TOPIC", help="a topic, or a pattern with * and ?")


_Action = Callable[[PubSub, argparse.Namespace], int]


def _runner(action: _Action) -> Callable[[argparse.Namespace, Config], int]:
    """What runs a subprogram, in the directory that its options name."""

    def run(arguments: argparse.Namespace, config: Config) -> int:
        directory = arguments.directory
        if directory is None and arguments.configfile is not None:
            directory = config
        try:
            where = place(directory, arguments.name)
            arguments.directory = where.lock_directory
            if action is _topics and not os.path.isdir(where.lock_directory):
                raise ValueError(f"{where.lock_directory}: there is no such directory, so nobody subscribes there")
            with PubSub(where, background=False) as pubsub:
                return action(pubsub, arguments)
        except ValueError as error:
            if isinstance(error, MsgdError):
                raise
            sys.stderr.write(f"{_PROGRAM}: {error}\n")
            return cli.EXIT_FAILURE

    return run


def _publish(pubsub: PubSub, arguments: argparse.Namespace) -> int:
    topic = arguments.topic
    publication = pubsub.publish(
        topic,
        _data(arguments.kind, arguments.data),
        wait="acked" if arguments.acked else None,
        timeout=arguments.timeout,
    )
    if arguments.json:
        print(json.dumps(_as_json(topic, publication)), flush=True)
    else:
        done, number = "delivered to", publication.delivered
        if arguments.acked:  # those count whose callbacks have run: others subscribe to other topics
            done, number = "handled by", sum(1 for callbacks in publication.acked.values() if callbacks)
        nodes = sum(error is None for error in publication.nodes.values())
        also = f", and sent to {nodes} other node{'' if nodes == 1 else 's'}" if nodes else ""
        print(f"{done} {number} process{'' if number == 1 else 'es'}{also}", flush=True)
    if publication.is_complete:
        return 0
    for pid, error in publication.failures.items():
        sys.stderr.write(f"{_PROGRAM}: pid {pid}: {error}\n")
    for dst, outcome in publication.elsewhere.items():
        if isinstance(outcome, MsgdError):
            sys.stderr.write(f"{_PROGRAM}: pid {dst.process}: {outcome}\n")
    for node, reason in publication.nodes.items():
        if reason is not None:
            sys.stderr.write(f"{_PROGRAM}: node {node}: {reason}\n")
    return cli.EXIT_FAILURE


def _data(kind: str | None, data: str) -> Data:
    """What is to be published.  Raises OSError, ValueError."""
    if data == "-":
        raw = sys.stdin.buffer.read()
    elif data.startswith("@"):
        with open(data[1:], "rb") as file:
            raw = file.read()
    else:
        raw, kind = data.encode(errors="surrogateescape"), kind or "text"
    if kind == "json":
        decoded: Data = json.loads(raw)
        return decoded
    return raw.decode() if kind == "text" else raw


def _as_json(topic: str, publication: Publication) -> dict[str, object]:
    return {
        "topic": topic,
        "delivered": publication.delivered,
        "acked": publication.acked,
        "failures": {pid: str(error) for pid, error in publication.failures.items()},
        "elsewhere": {
            str(dst): str(one) if isinstance(one, MsgdError) else one for dst, one in publication.elsewhere.items()
        },
        "nodes": {node: None if error is None else str(error) for node, error in publication.nodes.items()},
    }


def _subscribe(pubsub: PubSub, arguments: argparse.Namespace) -> int:
    """Print events until as many have come, or a signal ends it."""
    cli.exit_on_signals()
    left = float("inf") if arguments.count is None else arguments.count
    heard: list[Event | Gap] = []
    pubsub.subscribe(arguments.topic, heard.append, on_gap=heard.append)
    try:
        while left > 0:
            pubsub.dispatch(None)
            for one in heard:  # not in the callback: stdout may be closed, and a callback's errors are only logged
                if left > 0:
                    _show(one, arguments.json)
                    left -= isinstance(one, Event)
            heard.clear()
    except KeyboardInterrupt:
        return 0
    return 0


def _show(one: Event | Gap, as_json: bool) -> None:
    if isinstance(one, Gap):
        sys.stderr.write(f"{_PROGRAM}: publications may have been missed: {one}\n")
        line = json.dumps({"gap": one.reason.name, "missed": one.missed}) if as_json else None
    elif as_json:
        line = json.dumps({"topic": one.topic, "from": str(one.src), **_member(one.data)}, ensure_ascii=False)
    else:
        line = f"{one.topic} {_text(one.data)}"
    if line is not None:
        print(line, flush=True)


def _member(data: Any) -> dict[str, object]:
    """The data as a member of an object, whose name says what it is."""
    if isinstance(data, bytes):
        return {"base64": base64.b64encode(data).decode()}
    return {"text": data} if isinstance(data, str) else {"json": data}


def _text(data: Any) -> str:
    """The data on one line."""
    if not isinstance(data, bytes | str):
        return json.dumps(data, ensure_ascii=False)
    text = data.decode(errors="backslashreplace") if isinstance(data, bytes) else data
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _topics(pubsub: PubSub, arguments: argparse.Namespace) -> int:
    found = pubsub.topics(arguments.timeout)
    if not found:
        sys.stderr.write(f"{_PROGRAM}: nobody subscribes to anything in {arguments.directory}\n")
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False), flush=True)
    else:
        for pid, topics in found.items():
            for topic in topics:
                print(f"{pid} {topic}")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text[:10]) < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of events above 0")
    return int(text)


PUBLISH = Actions(_add_publish, _runner(_publish))
SUBSCRIBE = Actions(_add_subscribe, _runner(_subscribe))
TOPICS = Actions(_add_common, _runner(_topics))
