"""`python -m tests.golden --update` writes the golden files of all dialects again."""

import sys

from tests.golden import update

if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python -m tests.golden --update")
    update()
