"""Malformed HTTP requests: hand-made ones, and well-formed ones that are mutated by a seed.

The hand-made ones are known to confuse parsers: two lengths, folded headers, bare line feeds, targets that are no
paths, too many or too long fields.
"""

import random
from collections.abc import Iterator

TURN = "01930000-0000-7000-8000-000000000000"
BODY = b'{"message": "#sim words=1 rate=0"}'


def well_formed_requests(key: str) -> list[bytes]:
    """Well-formed requests, one for each way in which the gateway reads one."""
    head = f"host: localhost\r\nauthorization: Bearer {key}\r\n"
    json = "content-type: application/json\r\n"
    asking = "expect: 100-continue\r\n"
    browser = "origin: https://x.example\r\naccess-control-request-method: POST\r\n"
    length = f"content-length: {len(BODY)}\r\n\r\n".encode()
    chat = b'{"model": "claude-haiku-5-5", "max_tokens": 5, "messages": [{"role": "user", "content": "#sim words=1"}]}'
    return [
        f"GET /healthz HTTP/1.1\r\n{head}\r\n".encode(),
        f"GET /v1/turns/{TURN}/events?dialect=text&after=1 HTTP/1.1\r\n{head}last-event-id: 17\r\n\r\n".encode(),
        f"GET /v1/sessions?limit=2 HTTP/1.0\r\n{head}\r\n".encode(),
        f"POST /v1/turns HTTP/1.1\r\n{head}{json}idempotency-key: fuzz\r\n".encode() + length + BODY,
        f"POST /v1/messages HTTP/1.1\r\n{head}{json}{asking}content-length: {len(chat)}\r\n\r\n".encode() + chat,
        f"POST /v1/turns HTTP/1.1\r\n{head}{json}transfer-encoding: chunked\r\n\r\n22\r\n".encode()
        + BODY
        + b"\r\n0\r\n\r\n",
        f"OPTIONS /v1/turns HTTP/1.1\r\n{head}{browser}\r\n".encode(),
        f"HEAD /openapi.json HTTP/1.1\r\n{head}connection: close\r\n\r\n".encode(),
    ]


def malformed_requests(key: str) -> dict[str, bytes]:
    """Malformed requests that were written by hand."""
    head = f"host: localhost\r\nx-api-key: {key}\r\n".encode()
    post = b"POST /v1/turns HTTP/1.1\r\n" + head + b"content-type: application/json\r\n"
    get = b"GET /healthz HTTP/1.1\r\n"
    chunked = post + b"transfer-encoding: chunked\r\n"
    return {
        "both lengths": post + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": post + b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}    ",
        "the same length twice": post + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        "a negative length": post + b"content-length: -1\r\n\r\n{}",
        "a length with a sign": post + b"content-length: +2\r\n\r\n{}",
        "a length of 2^64": post + b"content-length: 18446744073709551616\r\n\r\n{}",
        "a length and a space": post + b"content-length : 2\r\n\r\n{}",
        "a gigabyte, declared": post + b"content-length: 1073741824\r\n\r\n{}",
        "a gigabyte, with a question first": post + b"expect: 100-continue\r\ncontent-length: 1073741824\r\n\r\n",
        "another expectation": post + b"expect: tea\r\ncontent-length: 2\r\n\r\n{}",
        "chunked twice": post + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "chunked, not last": post + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "chunked in disguise": post + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "a chunk of 2^64": chunked + b"\r\n10000000000000000\r\nx\r\n0\r\n\r\n",
        "a chunk with a sign": chunked + b"\r\n-1\r\nx\r\n0\r\n\r\n",
        "a chunk without an end": chunked + b"\r\n5\r\nabcdefgh\r\n0\r\n\r\n",
        "a chunk with an extension": chunked + b"\r\n2;a=b\r\n{}\r\n0\r\n\r\n",
        "a trailer that is a length": chunked + b"\r\n2\r\n{}\r\n0\r\ncontent-length: 5\r\n\r\n",
        "a folded header": get + head + b"x: a\r\n b\r\n\r\n",
        "bare line feeds": get.replace(b"\r", b"") + head.replace(b"\r", b"") + b"\n",
        "bare carriage returns": get.replace(b"\n", b"") + head.replace(b"\n", b"") + b"\r",
        "a line feed in a value": get + head + b"x: a\nx-api-key: b\r\n\r\n",
        "a NUL in a value": get + head + b"x: a\x00b\r\n\r\n",
        "a header without a name": get + head + b": a\r\n\r\n",
        "a header without a colon": get + head + b"abc\r\n\r\n",
        "no host": get + b"\r\n",
        "two hosts": get + head + b"host: other\r\n\r\n",
        "a host that is none": get + b"host: a b/\\\r\n\r\n",
        "a host with a port that is none": get + b"host: localhost:99999999\r\n\r\n",
        "an empty host": get + b"host:\r\n\r\n",
        "a whole URL": b"GET http://evil.example/healthz HTTP/1.1\r\n" + head + b"\r\n",
        "a whole URL that is none": b"GET http://[::1/healthz HTTP/1.1\r\n" + head + b"\r\n",
        "two slashes": b"GET //evil.example/healthz HTTP/1.1\r\n" + head + b"\r\n",
        "a star": b"OPTIONS * HTTP/1.1\r\n" + head + b"\r\n",
        "a star for GET": b"GET * HTTP/1.1\r\n" + head + b"\r\n",
        "TRACE": b"TRACE /healthz HTTP/1.1\r\n" + head + b"\r\n",
        "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\n" + head + b"\r\n",
        "a method that is none": b"FETCH /healthz HTTP/1.1\r\n" + head + b"\r\n",
        "a method in small letters": b"get /healthz HTTP/1.1\r\n" + head + b"\r\n",
        "a method of a megabyte": b"A" * 2**20 + b" / HTTP/1.1\r\n\r\n",
        "HTTP/0.9": b"GET /healthz\r\n",
        "HTTP/2.0": b"GET /healthz HTTP/2.0\r\n" + head + b"\r\n",
        "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 60,
        "a wish for a web socket": get
        + head
        + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 500,
        "nothing but line feeds": b"\r\n" * 20_000,
        "a header of a megabyte": get + head + b"x: " + b"a" * 2**20 + b"\r\n\r\n",
        "ten thousand headers": get + head + b"x: a\r\n" * 10_000 + b"\r\n",
        "a path of 100 kB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + head + b"\r\n",
        "a query of 60 kB": b"GET /v1/sessions?" + b"a=b&" * 15_000 + b" HTTP/1.1\r\n" + head + b"\r\n",
        "a path that climbs": b"GET /../../etc/passwd HTTP/1.1\r\n" + head + b"\r\n",
        "a path that climbs in disguise": b"GET /v1/turns/%2e%2e%2f%2e%2e%2fhealthz HTTP/1.1\r\n" + head + b"\r\n",
        "a path that is no UTF-8": b"GET /v1/turns/%ff%fe HTTP/1.1\r\n" + head + b"\r\n",
        "a path with bytes": b"GET /v1/turns/\xff\xfe HTTP/1.1\r\n" + head + b"\r\n",
        "a percent alone": b"GET /v1/turns/%zz%?%=% HTTP/1.1\r\n" + head + b"\r\n",
        "a cursor that is none": f"GET /v1/turns/{TURN}/events?after=%00 HTTP/1.1\r\n".encode() + head + b"\r\n",
        "a header that ends a line": b"GET /v1/turns/%0d%0aset-cookie:a HTTP/1.1\r\n" + head + b"\r\n",
        "bytes of an ID": get + head + b"x-request-id: \xff\xfe\r\ntraceparent: 00-\xff\r\n\r\n",
        "a thousand at once": (get + head + b"\r\n") * 1000,
        "one request within another": post
        + b"content-length: 2\r\n\r\n{}"
        + b"GET /metrics HTTP/1.1\r\n"
        + head
        + b"\r\n",
        "an end in the middle": post + b"content-length: 100\r\n\r\n{",
    }


def mutate_requests(samples: list[bytes], seed: int, count: int) -> Iterator[bytes]:
    """Yields `count` requests that are cut, repeated or joined, or have bytes changed, removed or inserted."""
    chance = random.Random(seed)
    words = [
        b"\r\n",
        b"\n",
        b"\r",
        b"\x00",
        b":",
        b" ",
        b"%",
        b"chunked",
        b"content-length: 9",
        b"\xff",
        b"0",
        b"//",
        b"{",
        b'"',
    ]
    for _ in range(count):
        made = bytearray(chance.choice(samples))
        for _ in range(chance.choice((1, 1, 2, 4, 8))):
            at = chance.randrange(len(made) + 1)
            match chance.randrange(6):
                case 0:
                    made[at : at + 1] = bytes([chance.randrange(256)])
                case 1:
                    del made[at : at + chance.randrange(1, 20)]
                case 2:
                    made[at:at] = chance.choice(words)
                case 3:
                    made[at:at] = made[chance.randrange(len(made) + 1) :][: chance.randrange(1, 200)]
                case 4:
                    del made[at:]
                case _:
                    made += chance.choice(samples)
        yield bytes(made)
