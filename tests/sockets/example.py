"""Examples: a random answer of the model, how its bytes arrive, and what interrupts it. Each follows from its seed."""

import gzip
import json
import math
import random
from collections.abc import Iterator
from typing import Any, Literal, get_args

import msgspec

from tailrace.deploy.simulated_claude.case import event_type

Fault = Literal["none", "close", "reset", "kill", "cancel", "silence"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
"""`close` and `reset` end the connection, `kill` ends the generator, `cancel` ends the turn.

`silence`: after an event, the server sends nothing until all events so far are stored.
"""

EVENT_BYTES_MAX = 8 * 2**20
ANSWER_BYTES_MAX = 20 * 2**20
EVENTS_MAX = 60
PIECES_MAX = 3000
PAUSES_S_MAX = 1.0
# Short and long characters, what JSON escapes, and line ends of server-sent events.
ALPHABETS = ("w", "ab c", 'é"\\\n', "日本😀 ", "\r\n\u2028x")
USAGE = {"input_tokens": 3, "output_tokens": 1}
LINE_ENDS = (b"\n", b"\n", b"\r\n", b"\r")
# Servers and proxies send these between events, and after the last one.
BETWEEN = (b": keep-alive\n\n", b"\n\n\n", b"retry: 1000\n\n", b'event: ping\ndata: {"type": "ping"}\n\n')


class Piece(msgspec.Struct, frozen=True):
    """Bytes that the model's server sends together, after a pause."""

    data: bytes
    pause_s: float


class Example(msgspec.Struct, frozen=True):
    """One answer, and the circumstances in which it arrives."""

    seed: int
    lines: tuple[bytes, ...]
    """The JSON of each event."""
    is_tls: bool
    is_chunked: bool
    """Otherwise, the end of the connection is the end of the body. With TLS, it comes without `close_notify`."""
    is_compressed: bool
    """Whether a proxy compresses the body with gzip, which the generator does not ask for."""
    is_held: bool
    """Whether the body does not end after its last event: the server waits until the generator closes it."""
    line_end: bytes
    is_odd: bool
    """Whether events have no name and several lines of data, with comments, blank lines and pings between them."""
    is_busy: bool
    """Whether the generator's event loop is blocked again and again, as by other turns."""
    fault: Fault
    at: float
    """After which share of the pieces the fault comes."""

    @property
    def silent_after(self) -> int:
        """After how many events the silence comes."""
        return max(1, round(self.at * len(self.lines)))

    @property
    def may_lose_end(self) -> bool:
        """Whether the generator may lose the end of any answer, and asks for it again.

        When a TLS connection ends while its reading is paused, uvloop drops what it has not decrypted (0.23,
        `SSLProtocol.eof_received`).
        """
        return self.is_tls and not self.is_chunked and not self.is_held

    def stream(self, lines: tuple[bytes, ...]) -> bytes:
        """Returns the event stream of the response that sends `lines`."""
        if not self.is_odd:
            return plain_stream(lines).replace(b"\n", self.line_end)
        chance = random.Random(self.seed)
        # The first comma of an event is not within a string.
        events = (b"data:%b\n\n" % line.replace(b", ", b",\ndata: ", 1) for line in lines)
        pieces = ((event, chance.choice(BETWEEN)) if chance.random() < 0.5 else (event,) for event in events)
        return b"".join(piece for several in pieces for piece in several).replace(b"\n", self.line_end)

    def pieces(self, lines: tuple[bytes, ...], call: int) -> tuple[list[Piece], int]:
        """Returns the pieces of the response's body in call number `call`, from 0, and how many precede the fault."""
        chance = random.Random(f"{self.seed} {call}")
        stream = self.stream(lines)
        contents = [gzip.compress(stream, 1) if self.is_compressed else stream]
        if self.fault == "silence" and call == 0:
            silent_at = len(self.stream(lines[: self.silent_after]))
            contents = [stream[:silent_at], stream[silent_at:]]
        bodies = [b"".join(_chunked(content, chance)) if self.is_chunked else content for content in contents]
        if self.is_chunked and not self.is_held:
            bodies[-1] += b"0\r\n\r\n"
        size_max = _log_uniform(chance, 16, 2**22)
        pause = chance.choice((0.0, 0.0, 0.02, 0.5))
        found, paused_s, last_begins = list[Piece](), 0.0, 0
        for body in bodies:
            at, last_begins = 0, len(found)
            while at < len(body):
                size = max(_log_uniform(chance, 1, size_max), len(body) // PIECES_MAX)
                pause_s = chance.uniform(0, 0.004) if chance.random() < pause and paused_s < PAUSES_S_MAX else 0.0
                paused_s += pause_s
                found.append(Piece(body[at : at + size], pause_s))
                at += size
        return found, last_begins if self.fault == "silence" else round(self.at * len(found))


def make_example(seed: int) -> Example:
    """Returns the example of a seed."""
    chance = random.Random(seed)
    is_ascii = chance.random() < 0.5
    lines = tuple(json.dumps(event, ensure_ascii=is_ascii).encode() for event in _numbered(_events(chance)))
    example = Example(
        seed=seed,
        lines=lines,
        is_tls=chance.random() < 0.3,
        is_chunked=chance.random() < 0.8,
        is_busy=chance.random() < 0.5,
        fault=chance.choices(FAULTS, (5, 1, 1, 1, 1, 0))[0],
        at=chance.random(),
        is_compressed=chance.random() < 0.1,
        is_held=chance.random() < 0.2,
        line_end=chance.choice(LINE_ENDS),
        is_odd=chance.random() < 0.3,
    )
    if example.fault == "none" and chance.random() < 0.4:
        return msgspec.structs.replace(example, fault="silence", is_compressed=False)
    return example


def plain_stream(lines: tuple[bytes, ...]) -> bytes:
    """Returns `lines` as Anthropic sends them."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (event_type(line).encode(), line) for line in lines)


def _events(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Yields the events of an answer."""
    # In many answers a few events are large, in others all are small.
    size_max = _log_uniform(chance, 1000, EVENT_BYTES_MAX)
    left = [ANSWER_BYTES_MAX, EVENTS_MAX]

    def text() -> str:
        size = min(_log_uniform(chance, 1, size_max), max(left[0], 1))
        left[0] -= size
        left[1] -= 1
        alphabet = chance.choice(ALPHABETS)
        # A random text of some megabytes would take seconds; a number tells where a repeated part belongs.
        unit = f"{left[1]}" + "".join(chance.choices(alphabet, k=30))
        characters = max(1, size * len(unit) // len(json.dumps(unit)))
        return (unit * (characters // len(unit) + 1))[:characters]

    head: dict[str, Any] = {
        "id": f"msg_{chance.randrange(10**9)}",
        "type": "message",
        "role": "assistant",
        "content": [],
    }
    head |= {"model": "claude-sonnet-5-5", "stop_reason": None, "stop_sequence": None, "usage": USAGE}
    yield {"type": "message_start", "message": head}
    blocks, is_calling = chance.randint(1, 6), False
    for number in range(blocks):
        # Calls of the client's tools come last: an answer with such a call cannot be continued.
        kinds = ("text", "text", "thinking", "fetch") if number < blocks - 1 else ("text", "text", "tool")
        kind = chance.choice(kinds)
        deltas = chance.randint(1, max(1, min(left[1], 20)))
        match kind:
            case "text":
                yield _start({"type": "text", "text": ""})
                yield from (_delta("text_delta", text=text()) for _ in range(deltas))
            case "thinking":
                yield _start({"type": "thinking", "thinking": "", "signature": ""})
                yield from (_delta("thinking_delta", thinking=text()) for _ in range(deltas))
                yield _delta("signature_delta", signature="c2ln")
            case "tool":
                is_calling = True
                yield _start({"type": "tool_use", "id": "toolu_1", "name": "write", "input": {}})
                whole = json.dumps({"text": text()})
                cuts = sorted(chance.sample(range(1, len(whole)), min(deltas, len(whole) - 1)))
                parts = (whole[start:end] for start, end in zip((0, *cuts), (*cuts, None), strict=True))
                yield from (_delta("input_json_delta", partial_json=part) for part in ("", *parts))
            case "fetch":
                call = f"srvtoolu_{number}"
                yield _start({"type": "server_tool_use", "id": call, "name": "web_fetch", "input": {}})
                yield _delta("input_json_delta", partial_json='{"url":"https://example.com/"}')
                yield {"type": "content_block_stop"}
                source = {"type": "text", "media_type": "text/plain", "data": text()}
                result: dict[str, Any] = {
                    "type": "web_fetch_result",
                    "url": "https://example.com/",
                    "retrieved_at": None,
                }
                result |= {"content": {"type": "document", "source": source, "title": None}}
                yield _start({"type": "web_fetch_tool_result", "tool_use_id": call, "content": result})
        if chance.random() < 0.3:
            yield {"type": "ping"}
        yield {"type": "content_block_stop"}
    stop = {"stop_reason": "tool_use" if is_calling else "end_turn", "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 1000}}
    yield {"type": "message_stop"}


def _numbered(events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the events with the number of their block, before the block or delta."""
    index = -1
    for event in events:
        index += event["type"] == "content_block_start"
        is_of_block = event["type"].startswith("content_block_")
        yield {"type": event["type"], **({"index": index} if is_of_block else {}), **event}


def _start(block: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_start", "content_block": block}


def _delta(kind: str, **fields: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "delta": {"type": kind, **fields}}


def _chunked(body: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yields the chunks of `body` in the chunked transfer coding (RFC 9112, 7.1)."""
    size_max, at = _log_uniform(chance, 1000, 2**22), 0
    while at < len(body):
        size = max(_log_uniform(chance, 1, size_max), len(body) // PIECES_MAX)
        chunk = body[at : at + size]
        yield b"%x\r\n%b\r\n" % (len(chunk), chunk)
        at += size


def _log_uniform(chance: random.Random, least: int, most: int) -> int:
    """Returns a number whose digits, not whose value, are equally likely to be few or many."""
    return round(math.exp(chance.uniform(math.log(least), math.log(most))))
