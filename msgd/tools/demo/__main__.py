# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`python -m msgd.tools.demo`."""

import sys

from msgd.tools.demo.main import main

if __name__ == "__main__":
    sys.exit(main())
