# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Thin modules for the servers and frameworks that people run workers with.  docs/web.md has the whole.

Each imports its framework, and nothing imports it: the frameworks are optional.
"""
