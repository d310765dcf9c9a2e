# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Names: how to find a process by what it does rather than by its pid."""
