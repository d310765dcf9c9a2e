# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""More than one machine: the same messages, carried to the processes of other nodes by ctdb."""
