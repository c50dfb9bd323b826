"""`python -m cryobench`."""

from cryobench.cli import command

if __name__ == "__main__":
    command()
