# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Conversion between bytes and objects: no socket, no file, no clock.

Each format that msgd speaks is written down here, in the module that packs and unpacks it.
"""
