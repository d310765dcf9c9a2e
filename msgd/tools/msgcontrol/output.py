# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Print the results of msgcontrol: answers as lines of text, or the whole outcome as JSON."""

from __future__ import annotations

import binascii

from msgd.programs.debug_levels import read_text
from msgd.tools.msgcontrol.command import Command
from msgd.tools.msgcontrol.outcome import Outcome
from msgd.wire.header import Message
from msgd.wire.message_types import type_name


def print_answer(command: Command, message: Message) -> None:
    """Print an answer as lines of text."""
    text = command.show(message)
    print(text, end="" if text.endswith("\n") else "\n", flush=True)


def print_json(destination: str, outcome: Outcome) -> None:
    """Print the outcome as one JSON object on one line.  `destination` is the one that the user gave."""
    import json  # slow to import, and rarely needed

    print(json.dumps(_as_json(destination, outcome)), flush=True)


def _as_json(destination: str, outcome: Outcome) -> dict[str, object]:
    return {
        "destination": destination,
        "command": outcome.command.name,
        "delivered": [str(dst) for dst in outcome.delivered],
        "gone": [str(dst) for dst in outcome.gone],
        "late": [str(dst) for dst in outcome.late],
        "unhandled": [str(dst) for dst in outcome.unhandled],
        "failures": {str(dst): reason for dst, reason in outcome.failures.items()},
        "answers": [
            {
                "pid": message.src.pid,
                "server_id": str(message.src),
                "type": type_name(message.type),
                "text": read_text(message.data),
                "base64": binascii.b2a_base64(message.data, newline=False).decode(),
            }
            for message in outcome.answers
        ],
        "text": outcome.text,
    }
