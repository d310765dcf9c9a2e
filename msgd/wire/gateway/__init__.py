# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the gateway and its clients say to each other: JSON objects, one a line."""
