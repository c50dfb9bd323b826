"""Plans of runs, checked before any work: grids of cells, suites, data sets and presets.

Lives here: requests, plans and their parts.
May be imported by the runner, the leaderboard, tuning, sweeps and the command line.
"""
