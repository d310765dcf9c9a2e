# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench: what messaging costs on this machine, beside what one would use instead.

`subjects` says what is measured, `workers` makes the processes that measure, `ping`, `flood` and so on are the
benchmarks (each a module with its options), `runner` interleaves their runs, and `results`, `record`, `tables`, `plot`
and `compare` are what becomes of the figures.  Everything goes through msgd's public API, as a user's program would.
"""
