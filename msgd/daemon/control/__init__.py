# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How the daemon's processes answer Samba's control messages."""
