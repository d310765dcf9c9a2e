# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the memory of this process is in, as a text: msgd's answer to pool-usage.

The lines look like those of Samba's report about talloc.  Python counts the objects that its collector follows
(containers, and instances of classes); texts and numbers are in the sum of the allocated blocks alone.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from pathlib import Path

_MOST_TYPES = 40
_STATUS = ("VmSize", "VmRSS", "VmData", "Threads", "FDSize")


def memory_report(what: str) -> str:
    """The report, some kilobytes long: the types that take the most bytes, then what the kernel says."""
    numbers: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for one in gc.get_objects():
        kind = type(one)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        numbers[name] += 1
        sizes[name] += sys.getsizeof(one, 0)
    lines = [f"full memory report on '{what}' (total {sizes.total():6} bytes in {numbers.total():3} blocks)"]
    lines += [
        f"    {name:<30} contains {size:6} bytes in {numbers[name]:3} blocks"
        for name, size in sizes.most_common(_MOST_TYPES)
    ]
    if len(sizes) > _MOST_TYPES:
        lines.append(f"    {len(sizes) - _MOST_TYPES} more types")
    lines.append(f"    Python has {sys.getallocatedblocks()} blocks allocated, those of texts and numbers included")
    lines += [f"    {line}" for line in _kernels_lines()]
    return "\n".join(lines) + "\n"


def _kernels_lines() -> list[str]:
    """What /proc says of the process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return [" ".join(line.split()) for line in lines if line.partition(":")[0] in _STATUS]
