# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The gateway: messaging for clients that have no endpoint of their own; each gets a connection process."""
