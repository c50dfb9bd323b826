"""The registered operators, masks and noise models.

Lives here: one file an operator, `factored` and `spectral` for closed forms.
May be imported by solvers and everything above.
"""
