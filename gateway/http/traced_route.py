"""Spans of requests: one for each request to a route, as a child of the client's `traceparent`."""

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.proto.runtime import tracing

SERVER_ERROR = 500


class TracedApp:
    """ASGI application that calls `app`, of the route at `path`, in a span until its response is complete.

    A `traceparent` that is malformed begins a new trace. `tracestate` and `baggage` are not read.
    """

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        span = tracing.start(
            f"{scope['method']} {self._path}",
            traceparent=Headers(scope=scope).get("traceparent"),
            kind=SpanKind.SERVER,
        )
        span.set_attributes({"http.request.method": scope["method"], "http.route": self._path})

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await self._app(scope, receive, send)
            except BaseException as error:
                tracing.fail(span, type(error).__name__)
                raise

        def start(message: Message) -> None:
            span.set_attribute("http.response.status_code", message["status"])
            if message["status"] >= SERVER_ERROR:
                tracing.fail(span, str(message["status"]))

        # The span lasts until the response is complete, so a deferred response is sent within it.
        observed = send_deferred(call, start)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            await observed(scope, receive, send)
