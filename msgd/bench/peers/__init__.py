# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The alternatives to msgd, each running the same ping.  Each is a module that only its own workers import."""
