# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`python -m msgd.tools.msgcontrol`."""

import sys

from msgd.tools.msgcontrol.main import main

if __name__ == "__main__":
    sys.exit(main())
