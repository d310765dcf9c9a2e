# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
# The two hooks are all that msgd needs here.
from msgd.integrations.gunicorn import post_fork, worker_exit

__all__ = ["post_fork", "worker_exit"]
