"""Statistics of leaderboards on plain arrays.

Lives here: bootstrap, signed-rank tests, paired comparisons, average ranks, power.
May be imported by the leaderboard alone.
"""
