# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The demo that `make demo` runs."""
