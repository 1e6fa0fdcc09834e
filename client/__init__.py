"""The Python client of Tailrace: asks, and reads each answer once, over as many connections as it takes.

    from tailrace import Client

    with Client() as client, client.ask("Why is the sky blue?") as answer:
        for event in answer:
            if event.type == "delta":
                print(event.text, end="", flush=True)

It imports httpx2, anyio and msgspec, and no other package of Tailrace. docs/PYTHON.md describes it.
"""

from tailrace.client.clients import Answer, AsyncAnswer, AsyncClient, Client
from tailrace.client.errors import TailraceError
from tailrace.client.events import End, TurnEvent
from tailrace.client.proxy_route import ProxiedRequest, proxy
from tailrace.client.transport import AsyncResumingTransport, ResumingTransport

__all__ = [
    "Answer",
    "AsyncAnswer",
    "AsyncClient",
    "AsyncResumingTransport",
    "Client",
    "End",
    "ProxiedRequest",
    "ResumingTransport",
    "TailraceError",
    "TurnEvent",
    "proxy",
]
