"""The arguments of the programs in this folder."""

import argparse
import sys


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of the program that runs. Its `--help` shows `description` as it is written."""
    spec = sys.modules["__main__"].__spec__
    name = spec.name.removesuffix(".__main__") if spec else sys.argv[0]
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f"python -m {name}", description=description, formatter_class=formatter)


def count(text: str) -> int:
    """Returns a number of at least 1; a program cannot measure nothing."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
