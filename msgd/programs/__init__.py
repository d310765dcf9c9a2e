# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the daemon and the tools share: command lines (cli), debug levels and the rules of `msgd:allow types`."""
