"""`python -m tests.golden --update` writes the golden files of all dialects and requests again."""

import sys

from tests.golden import requests, update

if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python -m tests.golden --update")
    update()
    requests.update()
