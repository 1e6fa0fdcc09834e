"""Authentication and authorization of every route that is not public."""

import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway import metrics
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.http import error_responses
from tailrace.gateway.http.query_parameters import require_known
from tailrace.gateway.http.read_body import BodyReader
from tailrace.gateway.http.route import Route
from tailrace.proto.errors import LogError, Refused, not_found
from tailrace.proto.runtime import tracing

Endpoint = Callable[[ApiRequest], Awaitable[ASGIApp]]

IGNORED = "tailrace-ignored"
"""Names what was ignored: query parameters here, fields in the endpoint, and sampling when the turn is stored."""


class GuardedEndpoint:
    """The ASGI application of `route`: authentication before `endpoint`, which receives an ApiRequest.

    `endpoint` is the route's endpoint with its services. Query parameters not in `route` are refused.
    """

    # A class, because Starlette would wrap a function in a second request and error handler.

    def __init__(
        self,
        route: Route,
        endpoint: Endpoint,
        authenticator: Authenticator,
        bodies: BodyReader,
    ) -> None:
        self._path, self._need, self._known = route.path, route.need, route.query_names
        self._endpoint = endpoint
        self._authenticator = authenticator
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticates the request, and sends the response of the endpoint, with further headers.

        Measures the time until the response begins. Releases what the request holds when the endpoint has returned its
        response, or failed. Raises Refused, LogUnavailable if authentication fails.
        """
        began_at = time.monotonic()
        request = ApiRequest(scope, receive, self._authenticator, self._bodies)
        if (need := self._need) != "public":
            principal = await self._authenticator.authenticate(request)
            if principal.turn is not None and request.path_params.get("turn") != principal.turn:
                raise not_found("turn")
            if need not in principal.scopes:
                raise Refused(
                    "scope_missing",
                    f"This needs a key with the scope `{need}`: tailrace keys create --tenant NAME --scope {need}",
                )
            request.principal = principal
        try:
            async with request.until_answered:
                if scope["query_string"] and (ignored := require_known(request, self._known)):
                    request.response_headers.append({IGNORED: ", ".join(ignored)})
                response = await self._endpoint(request)
        except (Refused, LogError) as error:
            response = error_responses.render_error(error, scope)
        # An open stream must not hold the request.
        headers = request.response_headers

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                for more in headers:
                    _add(MutableHeaders(scope=message), more)
                status = f"{message['status'] // 100}xx"
                waited_s = time.monotonic() - began_at
                metrics.REQUEST_S.labels(self._path, scope["method"], status).observe(waited_s, tracing.exemplar())
            await send(message)

        await response(scope, receive, send_measured)


def _add(headers: MutableHeaders, more: Mapping[str, str]) -> None:
    """Adds the headers `more`, in place of those with the same names; only the names in IGNORED are joined."""
    before = headers.get(IGNORED)
    headers.update(more)
    if before is not None and IGNORED in more:
        headers[IGNORED] = f"{before}, {more[IGNORED]}"
