"""``python -m asyncfetch`` is the command ``asyncfetch``."""

from asyncfetch._cli import main

if __name__ == "__main__":
    main()
