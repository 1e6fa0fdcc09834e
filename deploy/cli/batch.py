"""`tailrace batch`: asks a file of inputs at a gateway, shows how far it is, and writes the results.

Run again with the same file and options it goes on where it was: its Idempotency-Key is made of what it asks, the
stream is taken up at its cursor, and the results after the last line that came.
"""

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Via
from tailrace.proto.errors import Refused, SettingsInvalid, TailraceError

TIMEOUT_S = 60.0
TRIES_MAX = 60
TRY_AGAIN_S = 1.0
# A gateway that is restarted is back by then, and nobody need know.
TELL_AFTER = 2
BAR_CHARS = 30
# An answer that did not come, or not all of it.
BROKEN = (OSError, http.client.HTTPException, *DECODE_ERRORS)
# How a gateway names an input, and what is wrong within it.
INPUT = re.compile(r"[`$.]*requests\[(\d{1,5})\]([\w.\[\]]*)`?")


class Unreachable(TailraceError):
    """Nobody answers there, or no more."""


class Unwritable(TailraceError):
    """Nobody takes the answers: a full disk, a pipe that was closed."""


class ApiClient(NamedTuple):
    """A gateway, and the key that it is asked with."""

    url: str
    key: str

    def open(self, method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        """The answer to a request; raises Refused for what will not be better later, OSError."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        if self.key:
            sent["authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url + path, body, sent, method=method)  # noqa: S310  # checked: http(s)
        try:
            answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()
            # It closes itself; what says to come back later is no refusal, nor that as many streams are open as may be.
            if error.code in (502, 503, 504) or (error.code == http.client.TOO_MANY_REQUESTS and method == "GET"):
                raise ConnectionError(f"{error.code} {error.reason}") from error
            raise _refusal(error.code, said) from error
        return answer


def door(url: str, environ: Mapping[str, str]) -> ApiClient:
    """Raises SettingsInvalid."""
    if not url.startswith(("http://", "https://")):
        raise SettingsInvalid(f"{url!r} is not the address of a gateway, such as http://127.0.0.1:8000")
    return ApiClient(url.rstrip("/"), environ.get("TAILRACE_KEY", ""))


def run(at: ApiClient, file: Path, output: Path | None, parallel: int, via: Via) -> bool:
    """Whether every input was answered. Raises Refused, SettingsInvalid, Unreachable, Unwritable."""
    body, numbers = body_of(file, parallel, via)
    if output is not None:
        require_writable(output)
    key = f"batch-{hashlib.sha256(body).hexdigest()}"
    headers = {"content_type": "application/json", "idempotency_key": key}
    try:
        batch = _again(lambda: _told(at.open("POST", "/v1/batches", body, **headers)))
    except Refused as refused:
        raise Refused(refused.code, in_file(refused.message, file, numbers)) from refused
    sys.stderr.write(f"batch {batch['batch']}: it goes on when this is stopped; run the same again to come back\n")
    bar = Bar(sys.stderr)
    for event in events(at, batch["links"]["events"]):
        bar.show(event)
    bar.close()
    try:
        return _take(at, batch["links"]["results"], output)
    except OSError as error:  # of the writing: what the gateway fails at is Unreachable
        raise Unwritable(f"the answers cannot be written: {error.strerror}. Run the same again to have them") from error


def _take(at: ApiClient, path: str, output: Path | None) -> bool:
    if output is None:
        return _write(at, path, sys.stdout)
    # Whole or not there: half a file looks like all of it.
    part = output.with_name(output.name + ".part")
    with part.open("w", encoding="utf-8") as lines:
        is_whole = _write(at, path, lines)
    part.replace(output)
    return is_whole


def require_writable(output: Path) -> None:
    """Before anything is asked and paid for; raises SettingsInvalid."""
    if output.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        raise SettingsInvalid(f"{output} cannot be written: --output is a file, in a folder that is there")


def body_of(file: Path, parallel: int, via: Via) -> tuple[bytes, list[int]]:
    """The body of the POST, and the line of each input; raises SettingsInvalid, with that of what is no JSON."""
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
                raise SettingsInvalid(f"{file}:{number} is not JSON: {error}") from error
            numbers.append(number)
    if not requests:
        raise SettingsInvalid(f"{file} has no inputs: each is a line of JSON, as `tailrace batch --help` shows")
    # Named only where it is another: a file that was asked before it could be is still the same batch.
    body = {"requests": requests, "parallel": parallel} | ({} if via == "messages" else {"via": via})
    return msgspec.json.encode(body), numbers


def in_file(message: str, file: Path, numbers: Sequence[int]) -> str:
    """What a gateway says of an input, with the line where it stands."""

    def line(named: re.Match[str]) -> str:
        index, within = int(named[1]), named[2].lstrip(".")
        return f"{file}:{numbers[index]}" + (f", `{within}`" if within else "") if index < len(numbers) else named[0]

    return INPUT.sub(line, message)


def events(at: ApiClient, path: str) -> Iterator[dict[str, Any]]:
    """The events of the batch up to its end, over all connections that it takes."""
    cursor, tries = "", 0
    while True:
        try:
            resumed = {"last_event_id": cursor} if cursor else {}
            with at.open("GET", path, None, accept="text/event-stream", **resumed) as lines:
                event: dict[str, Any] = {}
                for line in lines:
                    name, _, text = line.decode().rstrip("\r\n").partition(": ")
                    if name == "data":
                        event = msgspec.json.decode(text)
                    elif name == "id":
                        cursor, tries = text, 0
                    elif not name and event:
                        yield event
                        if event["type"] in ("done", "error"):
                            return
                        event = {}
                if lines.status == http.client.NO_CONTENT:
                    return
        except BROKEN as error:
            tries = _tried(tries, error)
        else:
            tries = _tried(tries, ConnectionError("the stream ended before the batch did"))


def _write(at: ApiClient, path: str, output: TextIO) -> bool:
    """Writes the results, each once; whether all are completed. Raises OSError when they cannot be written."""
    is_whole = True
    for line, result in _results(at, path):
        output.write(line)
        is_whole &= result["outcome"] == "completed"
    output.flush()
    return is_whole


def _results(at: ApiClient, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line with what it says, once, over all connections that it takes."""
    last, tries = None, 0
    while True:
        try:
            with at.open("GET", path + (f"?after={last}" if last is not None else "")) as lines:
                for line in lines:
                    result = msgspec.json.decode(line)
                    last, tries = result["index"], 0
                    yield line.decode(), result
        except BROKEN as error:
            tries = _tried(tries, error)
        else:
            return


def _told(answer: http.client.HTTPResponse) -> Any:
    with answer:
        return msgspec.json.decode(answer.read())


def _again(ask: Callable[[], Any]) -> Any:
    """What a gateway says that may be on its way back. Asked twice with one key, a batch is asked once."""
    tries = 0
    while True:
        try:
            return ask()
        except BROKEN as error:
            tries = _tried(tries, error)


def _tried(tries: int, error: Exception) -> int:
    reason = getattr(error, "reason", error)
    why = getattr(reason, "strerror", None) or reason
    if tries >= TRIES_MAX:
        raise Unreachable(
            f"the gateway does not answer ({why}): start it, or say where it is with --url. Run the same again to go on"
        ) from error
    if tries == TELL_AFTER:
        # Over the bar, where there is one.
        sys.stderr.write(f"\rthe gateway does not answer ({why}); it is asked again for a minute\n")
        sys.stderr.flush()
    time.sleep(TRY_AGAIN_S)
    return tries + 1


def _refusal(status: int, said: bytes) -> Refused:
    try:
        error = msgspec.json.decode(said)["error"]
        said_here = "; the key is taken from TAILRACE_KEY" if status == http.client.UNAUTHORIZED else ""
        return Refused(str(error["code"]), str(error["message"]) + said_here)
    except (*DECODE_ERRORS, KeyError, TypeError):
        return Refused("internal", f"the gateway answered {status}")


class Bar:
    """One line of progress on a terminal, drawn over itself; elsewhere one line at the end."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._line = ""

    def show(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"type": "progress"}:
                self._line = line_of(event)
            case {"type": "done", "outcome": "cancelled"}:
                self._line += " cancelled"
            case {"type": "error", "message": message}:
                self._line += f" failed: {message}"
        if self._output.isatty():
            self._output.write(f"\r{self._line}\x1b[K")
            self._output.flush()

    def close(self) -> None:
        self._output.write("\n" if self._output.isatty() else f"{self._line}\n")


def line_of(progress: Mapping[str, Any]) -> str:
    done, failed, of = progress["done"], progress["failed"], progress["of"]
    full = BAR_CHARS * (done + failed) // of
    bar = "#" * full + "." * (BAR_CHARS - full)
    return f"[{bar}] {done + failed}/{of}, {failed} failed, ${progress['cost_usd']:.4f}"
