"""What a run will do, checked before any work: grids of cells, suites, data sets and presets.

Lives here: requests, plans and what they are made of.
May be imported by the runner, the leaderboard, tuning, sweeps and the command line.
"""
