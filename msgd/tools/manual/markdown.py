# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""docs/parameters.md: the table of parameters as markdown.

    python -m msgd.tools.manual.markdown >docs/parameters.md

`make docs` runs this. The result is the same on every machine: it leaves out what was chosen at configuration.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator

from msgd.config.kinds import Choice
from msgd.config.parameters import PARAMETERS, Parameter

_HEAD = """\
# Parameters

<!-- Generated from msgd/config/parameters.py by `make docs`. Edit the table there. -->

msgd reads these parameters from the section `[global]` of smb.conf. Names, includes and substitutions follow the rules
of Samba's smb.conf(5), so that the file of a live Samba can be used as it is; msgd ignores what only Samba knows.
`msgparm` checks a file, and `msgparm -v` shows every value in force.

**A line of Samba's never stops msgd.** What Samba passes over (a missing include, a line without `=`, a log level above
10, a relative path), msgd passes over, with a warning of msgparm's and one in the log. A file that Samba refuses (`[]`,
`copy = nosuch`, `use mmap = maybe`) makes msgparm fail as testparm does; msgd uses the rest of it. A bad line of
msgd's own (`msgd:...`, `messaging type`) is an error. A reload keeps the old settings in both cases.
`include = registry` and `config backend = registry` are read from Samba's registry.tdb. A relative include is taken
from the directory of its file; a relative path of Samba's from /, as by a daemon of Samba.

Python programs pass the same parameters by their Python names, which have no `msgd:` and underscores instead of blanks
and hyphens: `Config(lock_directory="/run/myservice", send_queue_messages=100)`.

A default *as configured* is chosen by `./configure.py`. `<lock directory>` in a default stands for the value of that
parameter. A running daemon takes up a new value of the parameters marked *reload* when it re-reads its smb.conf
(`msgcontrol msgd reload-config`, or SIGHUP); the others take effect when it starts.

| parameter | default | value | takes effect | meaning |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The text of docs/parameters.md."""
    return _HEAD + "".join(f"| {' | '.join(_cells(parameter))} |\n" for parameter in PARAMETERS)


def _cells(parameter: Parameter) -> Iterator[str]:
    yield f"`{parameter.name}`"
    if parameter.is_configured:
        yield "as configured"
    else:
        yield f"`{parameter.default}`" if parameter.default else "empty"
    kind = parameter.kind
    yield f"one of those {kind.what}" if isinstance(kind, Choice) else kind.description
    yield parameter.takes_effect
    synonyms = f" Also called {', '.join(f'`{name}`' for name in parameter.synonyms)}." if parameter.synonyms else ""
    yield f"{html.escape(parameter.sentence, quote=False)}{synonyms}"


if __name__ == "__main__":
    sys.stdout.write(page())
