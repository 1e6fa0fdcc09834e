"""`tailrace batch`: submits a file of inputs to a gateway as a batch, shows its progress, and writes the results.

A second run with the same file and options continues the same batch, because the Idempotency-Key is a hash of the
request. After a lost connection, events resume at the cursor, and results after the last received line.
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, get_args

import msgspec

from tailrace.client import TailraceError, TurnEvent
from tailrace.client.events import Done, Failed, Progress
from tailrace.deploy.cli.arguments import add_connection, add_json, add_number
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.output_file import open_output
from tailrace.deploy.cli.result import json_line, print_json
from tailrace.deploy.local.terminal_text import has_cursor, one_line
from tailrace.proto import errors
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Via
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.exit_status import EXIT_ERROR

DESCRIPTION = "Run all inputs of a file (one line of JSON each) as a batch; write a line for each answer."
EXAMPLES = """\
Each line of the file is one input, for example
  {"custom_id": "one", "params": {"message": "Why is the sky blue?", "max_tokens": 500}}

examples:
  tailrace batch questions.jsonl                         print the answers
  tailrace batch questions.jsonl --output answers.jsonl
  tailrace batch questions.jsonl --via message_batches   half the price, within a day
  TAILRACE_KEY=… tailrace batch questions.jsonl --url https://tailrace.example

If it is interrupted, run the same command again within a day: with the same file, --parallel and --via it continues the
same batch. Later, or if one of them differs, it creates a new batch, which you pay for again. Exit status 1: an input
has no answer.
"""
# A gateway takes a while to read 10,000 inputs.
SILENCE_S = 60.0
BAR_CHARS = 30
# How an error message of the gateway names an input and a field of the input.
INPUT = re.compile(r"[`$.]*requests\[(\d{1,5})\]([\w.\[\]]*)`?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.jsonl")
    add("--output", type=Path, metavar="FILE", help="file for the answers (default: standard output)")
    add_number(parser, "--parallel", 8, "concurrent inputs", 1, 64)
    add("--via", choices=get_args(Via), default="messages", help="message_batches: half the price, within a day")
    add_json(parser, "print the progress as lines of JSON on the standard error; the answers are always JSON")
    add_connection(parser)


class Unwritable(errors.TailraceError):
    """The answers cannot be written: a full disk, a closed pipe."""


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Runs the batch. Returns exit status 1 if an input was not answered.

    Raises SettingsInvalid, Unwritable, client.TailraceError.
    """
    with connect(args, environ, silence_s=SILENCE_S) as client:
        body, numbers = body_of(args.file, args.parallel, args.via)
        if args.output is not None:
            require_writable(args.output)
        key = f"batch-{hashlib.sha256(body).hexdigest()}"
        try:
            batch = client.request("POST", "/v1/turn-batches", msgspec.Raw(body), idempotency_key=key)["batch"]
        except TailraceError as error:
            error.args = (replace_references(str(error), args.file, numbers),)
            raise
        if not args.json:
            sys.stderr.write(
                f"batch {batch}: it does not stop with this command; run the command again for the results\n"
            )
        bar = Bar(sys.stderr)
        for event in client.resume(batch):
            if args.json:
                print_json(event, is_error=True)
            else:
                bar.show(event)
        if not args.json:
            bar.close()
        try:
            return 0 if _save(client.results(batch), args.output) else EXIT_ERROR
        except OSError as error:
            raise Unwritable(f"the answers cannot be written: {error.strerror}. Run the command again") from error


def _save(results: Iterable[Mapping[str, Any]], output: Path | None) -> bool:
    if output is None:
        return _write(results, sys.stdout)
    with open_output(output, overwrites=True) as lines:
        return _write(results, lines)


def _write(results: Iterable[Mapping[str, Any]], output: TextIO) -> bool:
    """Writes each result as a line; returns whether all are completed. Raises OSError if they cannot be written."""
    is_complete = True
    for result in results:
        output.write(f"{json_line(result, output)}\n")
        is_complete &= result["outcome"] == "completed"
    output.flush()
    return is_complete


def require_writable(output: Path) -> None:
    """Raises SettingsInvalid for a bad `output`, before the batch costs money."""
    is_device = output.exists() and not output.is_file()
    where, rights = (output, os.W_OK) if is_device else (output.parent, os.W_OK | os.X_OK)
    if output.is_dir() or not os.access(where, rights):
        raise SettingsInvalid(f"{output} cannot be written: --output needs a file in an existing, writable directory")


def body_of(file: Path, parallel: int, via: Via) -> tuple[bytes, list[int]]:
    """Returns the body of the POST and the line number of each input. Raises SettingsInvalid for invalid JSON."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise SettingsInvalid(f"{file} cannot be read: {error.strerror}") from error
    requests, numbers = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                requests.append(msgspec.json.decode(line))
            except DECODE_ERRORS as error:
                why = str(error).removeprefix("JSON is malformed: ")
                raise SettingsInvalid(f"{file}:{number} is not JSON: {why}") from error
            numbers.append(number)
    if not requests:
        raise SettingsInvalid(f"{file} has no inputs: write a line of JSON for each, as `tailrace batch --help` shows")
    return msgspec.json.encode({"requests": requests, "parallel": parallel, "via": via}), numbers


def replace_references(message: str, file: Path, numbers: Sequence[int]) -> str:
    """Replaces the gateway's references to inputs in `message` by the file's line numbers."""

    def line(found: re.Match[str]) -> str:
        index, field = int(found[1]), found[2].lstrip(".")
        return f"{file}:{numbers[index]}" + (f", `{field}`" if field else "") if index < len(numbers) else found[0]

    return INPUT.sub(line, message)


class Bar:
    """A progress bar on a terminal; for other outputs one line at the end."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._line = ""

    def show(self, event: TurnEvent) -> None:
        """Draws the progress or the end of the batch; ignores other events."""
        match event:
            case Progress():
                self._line = line_of(event)
            case Done(outcome="cancelled"):
                self._line += " cancelled"
            case Failed(message=message):
                self._line += f" failed: {one_line(message)}"
            case _:
                pass
        if has_cursor(self._output):
            self._output.write(f"\r{self._line}\x1b[K")
            self._output.flush()

    def close(self) -> None:
        """Ends the line of the bar, or prints the only line of an output without a cursor."""
        self._output.write("\n" if has_cursor(self._output) else f"{self._line}\n")


def line_of(progress: Progress) -> str:
    """Returns the progress of a batch as one line with a bar."""
    done, failed, of = progress.done, progress.failed, progress.of
    full = BAR_CHARS * (done + failed) // of
    bar = "#" * full + "." * (BAR_CHARS - full)
    return f"[{bar}] {done + failed}/{of}, {failed} failed, ${progress.cost_usd:.4f}"
