"""`python -m cryobench`."""

from cryobench.cli import main

if __name__ == "__main__":
    main()
