# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What one would use instead of msgd, doing the same ping: one module each, imported by whoever measures it."""
