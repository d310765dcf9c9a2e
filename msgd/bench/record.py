# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Save results as JSON: every single run, with a description of the machine."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from msgd import _registry
from msgd.bench import qlen
from msgd.bench.results import Figure, Outcome, Result, Row

FORMAT = 1
"""The version of the file format.  read() refuses a file with another version."""

_PACKAGES = ("pyzmq", "pynng", "redis", "nats-py", "iceoryx2", "dbus-fast", "matplotlib", "rich")


def machine() -> dict[str, Any]:
    """Describe the machine: processor, memory, kernel, Python and versions, but nothing that identifies it."""
    cpu = re.search(r"^model name\s*: (.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": cpu[1] if cpu else platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory MiB": int(memory[1]) // 1024 if memory else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "msgd": _registry.VERSION,
        "configured": _registry.CONFIGURE_LINE,
        "load average": os.getloadavg()[0],
        "net.unix.max_dgram_qlen": qlen.read(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def document(results: Iterable[Result], ran_on: dict[str, Any]) -> dict[str, Any]:
    """Return the results and the machine as a document for the json module."""
    return {"msgbench": FORMAT, "machine": ran_on, "results": [_plain_result(result) for result in results]}


def write(path: Path, results: Iterable[Result], ran_on: dict[str, Any]) -> None:
    """Write the document to a file.  If that fails, the file is unchanged.  Raises OSError."""
    text = json.dumps(document(results, ran_on), indent=1, ensure_ascii=False) + "\n"
    if path.exists() and not path.is_file():
        path.write_text(text)  # /dev/stdout and the like
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """Return the results in a file and the machine they ran on.

    Raises OSError, and ValueError if the file was not written by --json.
    """
    try:
        content = json.loads(path.read_bytes())
        if content["msgbench"] != FORMAT:
            raise ValueError(f"its format is version {content['msgbench']}; this msgbench reads version {FORMAT}")
        return [_result(result) for result in content["results"]], content["machine"]
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError("it was not written by msgbench --json") from None


def _plain_result(result: Result) -> dict[str, Any]:
    return {
        "benchmark": result.benchmark,
        "title": result.title,
        "figures": [figure._asdict() for figure in result.figures],
        "base": result.base,
        "counts": list(result.counts),
        "compared": list(result.compared),
        "settings": dict(result.settings),
        "rows": [
            {
                "subject": row.subject,
                "parameters": dict(row.parameters),
                "note": row.note,
                "missing": row.missing,
                "page_2006": row.page_2006,
                "runs": [
                    {"figures": dict(one.figures), "counts": dict(one.counts), "failure": one.failure}
                    for one in row.outcomes
                ],
            }
            for row in result.rows
        ],
    }


def _result(plain: dict[str, Any]) -> Result:
    rows = [
        Row(
            row["subject"],
            row["parameters"],
            [Outcome(run["figures"], run["counts"], run["failure"]) for run in row["runs"]],
            row["note"],
            row["missing"],
            row["page_2006"],
        )
        for row in plain["rows"]
    ]
    figures = tuple(Figure(**figure) for figure in plain["figures"])
    return Result(
        plain["benchmark"],
        plain["title"],
        figures,
        rows,
        plain["settings"],
        plain["base"],
        tuple(plain["counts"]),
        tuple(plain.get("compared", ())),
    )


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
