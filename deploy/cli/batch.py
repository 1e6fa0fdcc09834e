"""`tailrace batch`: submits a file of inputs to a gateway as a batch, shows its progress, and writes the results.

A second run with the same file and options continues the same batch, because the Idempotency-Key is a hash of the
request. After a lost connection the event stream resumes at its cursor, and the results after the last received line.
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
ATTEMPTS_MAX = 60
RETRY_S = 1.0
# A gateway that restarts is back after this many attempts, and no message is needed.
QUIET_ATTEMPTS = 2
BAR_CHARS = 30
# A missing or incomplete response.
BROKEN = (OSError, http.client.HTTPException, *DECODE_ERRORS)
# How a gateway's error message refers to an input and a field of it.
INPUT = re.compile(r"[`$.]*requests\[(\d{1,5})\]([\w.\[\]]*)`?")


class Unreachable(TailraceError):
    """The gateway does not answer."""


class Unwritable(TailraceError):
    """The answers cannot be written: a full disk, a closed pipe."""


class ApiClient(NamedTuple):
    """A gateway's address and the API key for it."""

    url: str
    key: str

    def open(self, method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        """Returns the response to a request. Raises Refused for an error that a retry cannot repair, else OSError."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        if self.key:
            sent["authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url + path, body, sent, method=method)  # noqa: S310  # checked: http(s)
        try:
            answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            with error:
                response_body = error.read()
            # Temporary: an overloaded or restarting gateway, or (429 to a GET) too many open streams.
            if error.code in (502, 503, 504) or (error.code == http.client.TOO_MANY_REQUESTS and method == "GET"):
                raise ConnectionError(f"{error.code} {error.reason}") from error
            raise _refusal(error.code, response_body) from error
        return answer


def api_client(url: str, environ: Mapping[str, str]) -> ApiClient:
    """Raises SettingsInvalid if `url` is not an HTTP URL."""
    if not url.startswith(("http://", "https://")):
        raise SettingsInvalid(f"{url!r} is not a URL of a gateway, such as http://127.0.0.1:8000")
    return ApiClient(url.rstrip("/"), environ.get("TAILRACE_KEY", ""))


def run(at: ApiClient, file: Path, output: Path | None, parallel: int, via: Via) -> bool:
    """Runs the batch; returns whether all inputs were answered.

    Raises Refused, SettingsInvalid, Unreachable, Unwritable.
    """
    body, numbers = body_of(file, parallel, via)
    if output is not None:
        require_writable(output)
    key = f"batch-{hashlib.sha256(body).hexdigest()}"
    headers = {"content_type": "application/json", "idempotency_key": key}
    try:
        batch = _retry(lambda: _read(at.open("POST", "/v1/batches", body, **headers)))
    except Refused as refused:
        raise Refused(refused.code, in_file(refused.message, file, numbers)) from refused
    sys.stderr.write(f"batch {batch['batch']}: it continues if you stop this command; run it again for the results\n")
    bar = Bar(sys.stderr)
    for event in events(at, batch["links"]["events"]):
        bar.show(event)
    bar.close()
    try:
        return _save(at, batch["links"]["results"], output)
    except OSError as error:  # from writing: an error of the gateway is Unreachable
        raise Unwritable(f"the answers cannot be written: {error.strerror}. Run the command again") from error


def _save(at: ApiClient, path: str, output: Path | None) -> bool:
    if output is None:
        return _write(at, path, sys.stdout)
    # Renamed when it is complete, so that an incomplete file is not mistaken for a complete one.
    part = output.with_name(output.name + ".part")
    with part.open("w", encoding="utf-8") as lines:
        is_complete = _write(at, path, lines)
    part.replace(output)
    return is_complete


def require_writable(output: Path) -> None:
    """Raises SettingsInvalid, before the batch is submitted and costs money."""
    if output.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
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
                raise SettingsInvalid(f"{file}:{number} is not JSON: {error}") from error
            numbers.append(number)
    if not requests:
        raise SettingsInvalid(f"{file} has no inputs: write a line of JSON for each, as `tailrace batch --help` shows")
    # Left out by default, so that files that were submitted before `via` existed still have the same key.
    body = {"requests": requests, "parallel": parallel} | ({} if via == "messages" else {"via": via})
    return msgspec.json.encode(body), numbers


def in_file(message: str, file: Path, numbers: Sequence[int]) -> str:
    """Replaces the gateway's references to inputs in `message` by the file's line numbers."""

    def line(found: re.Match[str]) -> str:
        index, field = int(found[1]), found[2].lstrip(".")
        return f"{file}:{numbers[index]}" + (f", `{field}`" if field else "") if index < len(numbers) else found[0]

    return INPUT.sub(line, message)


def events(at: ApiClient, path: str) -> Iterator[dict[str, Any]]:
    """Yields the events of the batch until its end, reconnecting as needed."""
    cursor, attempts = "", 0
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
                        cursor, attempts = text, 0
                    elif not name and event:
                        yield event
                        if event["type"] in ("done", "error"):
                            return
                        event = {}
                if lines.status == http.client.NO_CONTENT:
                    return
        except BROKEN as error:
            attempts = _wait(attempts, error)
        else:
            attempts = _wait(attempts, ConnectionError("the stream ended before the batch did"))


def _write(at: ApiClient, path: str, output: TextIO) -> bool:
    """Writes each result once; returns whether all are completed. Raises OSError if they cannot be written."""
    is_complete = True
    for line, result in _results(at, path):
        output.write(line)
        is_complete &= result["outcome"] == "completed"
    output.flush()
    return is_complete


def _results(at: ApiClient, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each line and its decoded result once, reconnecting as needed."""
    last, attempts = None, 0
    while True:
        try:
            with at.open("GET", path + (f"?after={last}" if last is not None else "")) as lines:
                for line in lines:
                    result = msgspec.json.decode(line)
                    last, attempts = result["index"], 0
                    yield line.decode(), result
        except BROKEN as error:
            attempts = _wait(attempts, error)
        else:
            return


def _read(answer: http.client.HTTPResponse) -> Any:
    with answer:
        return msgspec.json.decode(answer.read())


def _retry(request: Callable[[], Any]) -> Any:
    """Repeats `request` while the gateway does not answer. With an Idempotency-Key it submits one batch."""
    attempts = 0
    while True:
        try:
            return request()
        except BROKEN as error:
            attempts = _wait(attempts, error)


def _wait(attempts: int, error: Exception) -> int:
    """Waits before the next attempt; returns the new number of attempts. Raises Unreachable after the last one."""
    reason = getattr(error, "reason", error)
    why = getattr(reason, "strerror", None) or reason
    if attempts >= ATTEMPTS_MAX:
        raise Unreachable(
            f"the gateway does not answer ({why}): start it, or set its address with --url, and run the command again"
        ) from error
    if attempts == QUIET_ATTEMPTS:
        # Overwrites the progress bar.
        sys.stderr.write(f"\rthe gateway does not answer ({why}); retrying for a minute\n")
        sys.stderr.flush()
    time.sleep(RETRY_S)
    return attempts + 1


def _refusal(status: int, body: bytes) -> Refused:
    try:
        error = msgspec.json.decode(body)["error"]
        hint = "; set the key in TAILRACE_KEY" if status == http.client.UNAUTHORIZED else ""
        return Refused(str(error["code"]), str(error["message"]) + hint)
    except (*DECODE_ERRORS, KeyError, TypeError):
        return Refused("internal", f"the gateway answered {status}")


class Bar:
    """A progress bar on a terminal; for other outputs one line at the end."""

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
