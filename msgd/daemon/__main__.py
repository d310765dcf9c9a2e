# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`python -m msgd.daemon` is msgd."""

from __future__ import annotations

import sys

from msgd.daemon.main import main

sys.exit(main())
