"""An optional feature of a gateway. The core knows features only by this type, and `__main__` lists them."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp

from tailrace.gateway.auth.admission import Limiter
from tailrace.gateway.auth.authenticate import Verifier
from tailrace.gateway.http.http_protocol import ClientConnection
from tailrace.gateway.http.route import Route
from tailrace.gateway.services import Gateway
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.streaming.reader import OnDisconnect
from tailrace.gateway.streaming.response import GoOn
from tailrace.gateway.turns.delete import DeletionSteps
from tailrace.gateway.turns.optional_steps import OptionalSteps

S = TypeVar("S", bound=msgspec.Struct)


class Parts(NamedTuple):
    """The services of a feature in one gateway."""

    services: tuple[object, ...] = ()
    """Each is given to the endpoints that have a parameter of its type. No two services have one type."""
    background: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = ()
    """Each runs from the start of the gateway until its end, when it is cancelled."""
    middleware: tuple[Middleware, ...] = ()
    """It receives the requests whose host is allowed."""
    prepare: Callable[[], Awaitable[None]] | None = None
    """Awaited before the gateway serves requests."""
    on_disconnect: OnDisconnect | None = None
    """Called when the client of a running turn has disconnected, with the seconds that it has to reconnect."""
    go_on: GoOn | None = None
    """Called when a reader has no more events of its turn."""
    steps: OptionalSteps = OptionalSteps()
    """The steps of a submission that the feature provides. No other feature provides the same ones."""
    deletion: DeletionSteps | None = None
    """The steps of the feature in a deletion of turns."""
    limiter: Limiter | None = None
    """The limits of the gateway, in place of the core's, which limits nothing. At most one feature sets it."""
    connection: type[ClientConnection] | None = None
    """The class of client connections, in place of the core's, which opens no WebSockets. At most one feature sets
    it."""


class Feature(NamedTuple, Generic[S]):
    """A feature: its settings, its routes, and the function that makes its services."""

    settings: type[S]
    """Read from the environment beside the settings of the core, and printed by `--env` with them."""
    start: Callable[[Gateway, S], Parts]
    check: Callable[[S], Awaitable[None]] | None = None
    """Checks the settings before the process connects to NATS. Raises SettingsInvalid."""
    make_verifier: Callable[[S], Verifier | None] = lambda _: None
    """Makes the verifier of a further credential in the headers, with which no request is anonymous any more. Returns
    None if the settings name no such credential. Raises SettingsInvalid."""
    routes: Sequence[Route] = ()
    dialects: Sequence[Dialect] = ()
    """They can be requested by name (`?dialect=`) like those of the core."""
    wrap: Callable[[Route], Route] = lambda route: route
    """Returns a route with this feature's parameters and wrapper of the endpoint; other routes unchanged."""
    shield: Callable[[Route, ASGIApp], ASGIApp] = lambda _, app: app
    """Returns the ASGI application of a route with what this feature answers before the authentication; that of other
    routes unchanged."""
    advise: Callable[[Request], str | None] = lambda _: None
    """Returns the message of the 404 for a request without a route, if this feature knows what its client wants."""
    urgent_paths: frozenset[str] = frozenset()
    """Requests to these paths are answered before those that wait for admission."""


Features = Sequence[Feature[Any]]
Started = Sequence[tuple[Feature[Any], Parts]]
"""Features with their services."""
