# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The configuration: smb.conf, its table of parameters, and `Config`, which holds their values."""

from __future__ import annotations

from msgd.config.config import Config, changes_on_reload, reloaded
from msgd.config.parameters import PARAMETERS, Parameter

__all__ = ["PARAMETERS", "Config", "Parameter", "changes_on_reload", "reloaded"]
