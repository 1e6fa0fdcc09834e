"""The HTTP client of the model's API: aiohttp under the SDK's client, with a time limit for every wait of an exchange.

aiohttp's own timers have gaps (3.14.5). None runs while a request is sent. After a malformed chunk, aiohttp stops its
read timer and never passes the error to the reader of the body, which then waits forever.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2

# Slower than this, a connection is as good as down: the largest body (32 MB) then takes two minutes.
UPLOAD_BYTES_S_MIN = 250_000


class HttpClient(anthropic.DefaultAioHttpClient):
    """The client for `http_client` of the SDK's clients. Raises httpx2.ReadTimeout where a limit has passed.

    Follows no redirect: it would send the conversation to another server.
    """

    def __init__(self) -> None:
        # Slots of turns and queries limit the calls. aiohttp's 0 is no limit; its default is 100, and the SDK's 1,000.
        super().__init__(follow_redirects=False, limits=httpx2.Limits(max_connections=0))

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """See httpx2.AsyncClient.send."""
        limits = request.extensions["timeout"]
        upload_s = int(request.headers.get("content-length", 0)) / UPLOAD_BYTES_S_MIN
        try:
            async with asyncio.timeout(limits["connect"] + upload_s + limits["read"]):
                response = await super().send(request, stream=True, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the response has not begun in time", request=request) from error
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101
        response.stream = TimedBody(response.stream, limits["read"])
        if not response.is_success:
            return await read_error(response)
        if not stream:
            await response.aread()
        return response


async def read_error(response: httpx2.Response) -> httpx2.Response:
    """Returns an error response with its body, or with an empty one if the body breaks off: the status says enough."""
    try:
        await response.aread()
    except httpx2.HTTPError:
        return httpx2.Response(response.status_code, headers=response.headers, request=response.request)
    return response


class TimedBody(httpx2.AsyncByteStream):
    """The body of a response. One timer closes it if a read waits for longer than `silence_s`.

    The timer is not set anew for each chunk, which would cost more than the rest of the read: it looks when the read
    began that waits now. It cancels no task, because the first chunk and the next ones may be read by different tasks.
    """

    def __init__(self, body: httpx2.AsyncByteStream, silence_s: float) -> None:
        self._body = body
        self._silence_s = silence_s
        self._waits_since = math.inf
        self._closing: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        now = asyncio.get_running_loop().time
        self._waits_since = now()
        self._look()
        try:
            async for chunk in self._body:
                self._waits_since = math.inf
                yield chunk
                self._waits_since = now()
        except httpx2.TransportError as error:
            if self._closing is None:
                raise
            raise httpx2.ReadTimeout("the response was silent for too long") from error
        finally:
            self._timer.cancel()

    async def aclose(self) -> None:
        await self._body.aclose()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        left_s = self._waits_since + self._silence_s - loop.time()
        if left_s > 0:
            self._timer = loop.call_later(min(left_s, self._silence_s), self._look)
        else:
            # This wakes the read with an error.
            self._closing = loop.create_task(self._body.aclose())
