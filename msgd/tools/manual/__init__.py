# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Manual pages, shell completion and the table of parameters, made from the programs' own parsers and tables."""
