# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Broadcasters: the ways to tell many processes something, which `msgbench fanout` measures in turn.

`base` has the loop that all of them run and starts the processes.  Each other module is one way, and only its own
workers import its library.
"""
