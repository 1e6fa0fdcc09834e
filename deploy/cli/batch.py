"""`tailrace batch`: submits a file of inputs to a gateway as a batch, shows its progress, and writes the results.

A second run with the same file and options continues the same batch, because the Idempotency-Key is a hash of the
request. After a lost connection the event stream resumes at its cursor, and the results after the last received line.
"""

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import httpx2
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
BUSY = (502, 503, 504)
BROKEN = (OSError, httpx2.HTTPError, *DECODE_ERRORS)
# How a gateway's error message refers to an input and a field of it.
INPUT = re.compile(r"[`$.]*requests\[(\d{1,5})\]([\w.\[\]]*)`?")


class Unreachable(TailraceError):
    """The gateway does not answer."""


class Unwritable(TailraceError):
    """The answers cannot be written: a full disk, a closed pipe."""


def api_client(url: str, environ: Mapping[str, str]) -> httpx2.Client:
    """Returns a client of the gateway at `url`. Raises SettingsInvalid if `url` is not an HTTP URL."""
    if not url.startswith(("http://", "https://")):
        raise SettingsInvalid(f"{url!r} is not a URL of a gateway, such as http://127.0.0.1:8000")
    key = environ.get("TAILRACE_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        return httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True)
    except httpx2.InvalidURL as error:
        raise SettingsInvalid(f"{url!r} is not a URL: {error}") from error
    except (ValueError, ImportError) as error:
        # httpx2 reads HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, and speaks SOCKS only with a further package.
        raise SettingsInvalid("the proxy in the environment cannot be used: set an http:// proxy or none") from error


@contextmanager
def open_response(
    client: httpx2.Client, method: str, path: str, body: bytes | None = None, **headers: str
) -> Iterator[httpx2.Response]:
    """Yields the response to a request. Raises Refused for an error that a retry cannot repair, else BROKEN."""
    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    with client.stream(method, path, content=body, headers=sent) as response:
        status = response.status_code
        # Temporary: an overloaded or restarting gateway, or (429 to a GET) too many open streams.
        if status in BUSY or (status == httpx2.codes.TOO_MANY_REQUESTS and method == "GET"):
            raise ConnectionError(f"{status} {response.reason_phrase}")
        if not response.is_success:
            raise _refusal(status, response.read())
        yield response


def run(client: httpx2.Client, file: Path, output: Path | None, parallel: int, via: Via) -> bool:
    """Runs the batch; returns whether all inputs were answered.

    Raises Refused, SettingsInvalid, Unreachable, Unwritable.
    """
    body, numbers = body_of(file, parallel, via)
    if output is not None:
        require_writable(output)
    key = f"batch-{hashlib.sha256(body).hexdigest()}"
    headers = {"content_type": "application/json", "idempotency_key": key}
    try:
        batch = _retry(lambda: _submit(client, body, headers))
    except Refused as refused:
        raise Refused(refused.code, in_file(refused.message, file, numbers)) from refused
    sys.stderr.write(f"batch {batch['batch']}: it continues if you stop this command; run it again for the results\n")
    bar = Bar(sys.stderr)
    for event in events(client, batch["links"]["events"]):
        bar.show(event)
    bar.close()
    try:
        return _save(client, batch["links"]["results"], output)
    except OSError as error:  # from writing: an error of the gateway is Unreachable
        raise Unwritable(f"the answers cannot be written: {error.strerror}. Run the command again") from error


def _save(client: httpx2.Client, path: str, output: Path | None) -> bool:
    if output is None:
        return _write(client, path, sys.stdout)
    # Renamed when it is complete, so that an incomplete file is not mistaken for a complete one.
    part = output.with_name(output.name + ".part")
    with part.open("w", encoding="utf-8") as lines:
        is_complete = _write(client, path, lines)
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


def events(client: httpx2.Client, path: str) -> Iterator[dict[str, Any]]:
    """Yields the events of the batch until its end, reconnecting as needed."""
    cursor, attempts = "", 0
    while True:
        try:
            resumed = {"last_event_id": cursor} if cursor else {}
            with open_response(client, "GET", path, None, accept="text/event-stream", **resumed) as response:
                if response.status_code == httpx2.codes.NO_CONTENT:
                    return
                for sent in httpx2.EventSource(response):
                    if sent.id:
                        cursor, attempts = sent.id, 0
                    if sent.data:
                        event = msgspec.json.decode(sent.data)
                        yield event
                        if event["type"] in ("done", "error"):
                            return
        except BROKEN as error:
            attempts = _wait(attempts, error)
        else:
            attempts = _wait(attempts, ConnectionError("the stream ended before the batch did"))


def _write(client: httpx2.Client, path: str, output: TextIO) -> bool:
    """Writes each result once; returns whether all are completed. Raises OSError if they cannot be written."""
    is_complete = True
    for line, result in _results(client, path):
        output.write(line)
        is_complete &= result["outcome"] == "completed"
    output.flush()
    return is_complete


def _results(client: httpx2.Client, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each line and its decoded result once, reconnecting as needed."""
    last, attempts = None, 0
    while True:
        try:
            with open_response(client, "GET", path + (f"?after={last}" if last is not None else "")) as response:
                for line in _lines(response):
                    result = msgspec.json.decode(line)
                    last, attempts = result["index"], 0
                    yield f"{line.decode()}\n", result
        except BROKEN as error:
            attempts = _wait(attempts, error)
        else:
            return


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    """Yields the lines of the body. httpx2's iter_lines would also split at U+2028, which JSON strings may contain."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest  # incomplete: its decoding fails, and the results after the last line are requested again


def _submit(client: httpx2.Client, body: bytes, headers: dict[str, str]) -> Any:
    with open_response(client, "POST", "/v1/turn-batches", body, **headers) as response:
        return msgspec.json.decode(response.read())


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
    why = _reason(error)
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


def _reason(error: BaseException) -> str:
    """Returns the message of the OSError that caused `error`, such as "Connection refused", else its own message."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "strerror", None) is None:
        cause = cause.__cause__ or cause.__context__
    return str(getattr(cause, "strerror", None) or error)


def _refusal(status: int, body: bytes) -> Refused:
    try:
        error = msgspec.json.decode(body)["error"]
        hint = "; set the key in TAILRACE_KEY" if status == httpx2.codes.UNAUTHORIZED else ""
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
