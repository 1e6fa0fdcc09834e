"""Runs the scripts of `findings/` one after the other, and prints a summary: passed, changed or not there, in seconds.

A script passes if the library or tool still behaves as its header says (status 0). Status 77 means that its program or
version cannot be installed here. Exit status 1 if a script has another status.
"""

import argparse
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "findings"
FIELD = re.compile(r"([A-Z][a-z]+): +")
STATES = {0: "passed", 77: "not there"}
# Longer than the time in which setup.sh ends a program that does not end by itself.
END_S = 20


def scripts_of(folder: Path) -> list[Path]:
    """Returns the scripts in alphabetical order. `setup.sh` is what they share."""
    return sorted(one for one in folder.glob("*.sh") if one.name != "setup.sh")


def read_header(script: Path) -> dict[str, str]:
    """Returns the fields of the comment at the top by their names, and the first line as `title`."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), script.read_text().splitlines()[1:])
    title, _, *rest = (line[2:] for line in lines)
    fields, name = {"title": title}, ""
    for line in rest:
        if found := FIELD.match(line):
            name = found[1]
        elif not line.startswith(" "):
            # The last sentence is about the exit status.
            break
        fields[name] = f"{fields.get(name, '')} {line[len(found[0]) if found else 0 :].strip()}".strip()
    return fields


def run(script: Path, packages: Path) -> tuple[str, str]:
    """Returns the state of the fact ("passed", "changed" or "not there") and the script's output.

    Scripts with the same folder `packages` install the same packages once. setup.sh has the script's time limit.
    """
    # A session of its own: Ctrl+C reaches this process only, which then ends the script.
    environ = {**os.environ, "FINDINGS_PACKAGES": str(packages)}
    process = None
    try:
        with deferred_interrupt():
            process = subprocess.Popen(
                [script],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                env=environ,
            )
        output, _ = process.communicate()
    except BaseException:
        if process:
            end(process)
        raise
    return STATES.get(process.returncode, "changed"), output


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Raises the KeyboardInterrupt of a Ctrl+C at the end of the block: a process that starts in it is known then."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def end(process: subprocess.Popen[str]) -> None:
    """Ends the script and all that it has started. SIGTERM lets it remove its folder."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=END_S)
            return


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make findings", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only scripts with one of these words in their names")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    scripts = [
        one for one in scripts_of(options.folder) if not options.words or any(w in one.name for w in options.words)
    ]
    if not scripts:
        print("No script has one of these words in its name.", file=sys.stderr)
        return 1
    count: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as packages:
        # PostgreSQL does not run as root: postgresql_server.py starts it from here as another user.
        Path(packages).chmod(0o711)
        for script in scripts:
            begin = time.monotonic()
            state, output = run(script, Path(packages))
            count[state] += 1
            print(f"{state:<9}  {time.monotonic() - begin:5.1f} s  {script.name}", flush=True)
            if state != "passed":
                print("".join(f"    {line}\n" for line in output.splitlines()), end="", flush=True)
    print(", ".join(f"{count[state]} {state}" for state in ("passed", "changed", "not there")))
    return 1 if count["changed"] else 0


if __name__ == "__main__":
    sys.exit(main())
