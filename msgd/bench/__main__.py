# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""python -m msgd.bench."""

from __future__ import annotations

import sys

from msgd.bench.main import main

sys.exit(main())
