"""Statistics of leaderboards on plain arrays.

Lives here: means and bootstrap intervals, signed-rank tests, paired comparisons, average ranks, power.
May be imported by the leaderboard and by the command line's live table.
"""
