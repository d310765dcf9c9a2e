"""smb.conf: one table of parameters drives the reader, the checker, the dump and the man page."""

from __future__ import annotations

from msgd.config.config import Config, changes_on_reload, reloaded
from msgd.config.parameters import PARAMETERS, Parameter

__all__ = ["PARAMETERS", "Config", "Parameter", "changes_on_reload", "reloaded"]
