# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The build step: what configure.py, `make install` and `pip install` are made of.

Rule 1. Standard library only: this code runs before anything has been installed.
Rule 2. Nothing here imports msgd, which cannot be imported before it is configured. Where the build step needs
        something that msgd knows (the manual pages), it starts msgd as a program.
Rule 3. Nothing here imports configure.py, which is a script on top of this package.
"""
