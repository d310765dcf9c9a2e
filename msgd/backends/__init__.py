# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The transports, one package each, and what they share.  The registry that configure.py generates names them."""
