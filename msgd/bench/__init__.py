# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench: measure what messaging costs on this machine, and compare it with the alternatives.

`subjects` lists what is measured.  `workers` starts the processes that measure.  `ping`, `flood` and so on are the
benchmarks, each a module with its own options.  `runner` interleaves their runs.  `results`, `record`, `tables`, `plot`
and `compare` hold, save and show the figures.  `main` parses the command line; `measure` and `saved` carry out the
subcommands.  Everything goes through msgd's public API, as in a user's program.
"""
