# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench dbench: the overall benchmark, file operations with the messages that a file server sends for them."""
