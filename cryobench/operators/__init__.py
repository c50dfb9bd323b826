"""The registered operators, masks and noise models.

Contents: one file per operator; `factored` and `spectral` are base classes with closed forms.
May be imported by solvers and higher layers.
"""
