"""``python -m fastff``: the command line without its console script."""

from fastff.cli import main

if __name__ == "__main__":
    main()
