"""The ASGI application: its routes, the services that their endpoints use, middleware and error handlers."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette import routing
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from tailrace.gateway.auth.allowed_hosts import AllowedHosts, HostMiddleware
from tailrace.gateway.auth.cors import cors_middleware, parse_origins
from tailrace.gateway.auth.guard import Endpoint, GuardedEndpoint
from tailrace.gateway.clients.blobs import ROUTES as BLOB_ROUTES
from tailrace.gateway.clients.native import routes as native
from tailrace.gateway.clients.registry import with_core
from tailrace.gateway.feature import Features, Started
from tailrace.gateway.http import error_responses
from tailrace.gateway.http.admission_queue import AdmissionQueue, refuse_connection
from tailrace.gateway.http.route import Route
from tailrace.gateway.http.traced_route import TracedApp
from tailrace.gateway.resources import (
    deletion,
    health,
    sessions,
)
from tailrace.gateway.services import Gateway
from tailrace.gateway.streaming.dialect import Dialects
from tailrace.proto.errors import LogError, Refused
from tailrace.proto.runtime import tracing
from tailrace.proto.runtime.feature_parts import join_distinct

# The core's routes, except those that `native.routes` makes from the dialects.
ROUTES: list[Route] = [
    *BLOB_ROUTES,
    *deletion.ROUTES,
    *sessions.ROUTES,
    *health.ROUTES,
]


def dialects_of(features: Features) -> Dialects:
    """Returns the dialects of the core and of `features`. Raises ValueError if two have the same name."""
    return with_core(dialect for feature in features for dialect in feature.dialects)


def routes_of(features: Features) -> list[Route]:
    """Returns the routes of the core and of `features`, each wrapped by all features.

    Raises ValueError if two have the same method and path.
    """
    every = [*native.routes(dialects_of(features)), *ROUTES]
    every += [route for feature in features for route in feature.routes]
    routes = [*join_distinct(((f"{route.method} {route.path}", route) for route in every), "route").values()]
    for feature in features:
        routes = [feature.wrap(route) for route in routes]
    return routes


def app(gateway: Gateway, features: Started = ()) -> Starlette:
    """Returns the application, with the routes of `features`, which are given with their services.

    Each endpoint receives the services of the types that annotate its parameters. Raises ValueError if two features
    have a service of the same type, or the same route.
    """
    listed = [feature for feature, _ in features]
    of_core = zip(inspect.get_annotations(Gateway).values(), gateway, strict=True)
    of_features = ((type(service), service) for _, parts in features for service in parts.services)
    services = join_distinct([*of_core, (Dialects, dialects_of(listed)), *of_features], "service")
    routes = routes_of(listed)
    urgent_paths = health.PATHS.union(*(feature.urgent_paths for feature, _ in features))

    def serve(route: Route) -> routing.Route:
        endpoint = bind(route.endpoint, services)
        serving: ASGIApp = GuardedEndpoint(route, endpoint, gateway.authenticator, gateway.bodies)
        for feature in listed:
            serving = feature.shield(route, serving)
        # A monitor polls these paths: each poll would be a trace.
        if tracing.is_on() and route.path not in health.PATHS:
            serving = TracedApp(serving, route.path)
        return routing.Route(route.path, serving, methods=[route.method])

    starlette = Starlette(
        # A path without parameters comes before those that match it: `/v1/sessions/stats` is no session.
        routes=[serve(route) for route in sorted(routes, key=lambda route: "{" in route.path)],
        middleware=[
            *_build_outermost_middleware(gateway, features),
            Middleware(AdmissionQueue, urgent=urgent_paths),
            # The last handler of Starlette stands outside of CORS.
            Middleware(ExceptionMiddleware, handlers={Exception: error_responses.handle_unexpected_error}),
        ],
        exception_handlers={
            Refused: error_responses.handle_refusal,
            LogError: error_responses.handle_refusal,
            HTTPException: partial(error_responses.handle_http_error, advisers=[one.advise for one in listed]),
            Exception: error_responses.handle_unexpected_error,
        },
    )
    # A redirect would repeat the body to an address that is made from the Host header.
    starlette.router.redirect_slashes = False
    return _with_refusal_events(starlette, routes)


def overflow_app(gateway: Gateway, features: Started = ()) -> Starlette:
    """Returns the application for connections above the limit, which rejects every request."""
    starlette = Starlette(
        routes=[routing.Mount("", refuse_connection)], middleware=_build_outermost_middleware(gateway, features)
    )
    return _with_refusal_events(starlette, routes_of([feature for feature, _ in features]))


def _with_refusal_events(starlette: Starlette, routes: Sequence[Route]) -> Starlette:
    """Returns the application, whose error responses find there how clients of these routes read a refusal."""
    starlette.state.refusal_renderers = {one.path: one.render_refusal for one in routes if one.render_refusal}
    return starlette


def _build_outermost_middleware(gateway: Gateway, features: Started) -> list[Middleware]:
    """Returns the outermost middleware. CORS lets an EventSource of another origin read why it is rejected."""
    return [
        Middleware(HostMiddleware, hosts=AllowedHosts(gateway.settings), authenticator=gateway.authenticator),
        *cors_middleware(parse_origins(gateway.settings.origins)),
        *(one for _, parts in features for one in parts.middleware),
    ]


def bind(endpoint: Any, services: dict[type, Any]) -> Endpoint:
    """Returns `endpoint` with a service, by its type, for each parameter after the request.

    Raises KeyError for a type without a service.
    """
    # `inspect.signature` would take half of the time in which an application is made.
    types = inspect.get_annotations(endpoint)
    types.pop("return", None)
    _, *parameters = types.items()
    return partial(endpoint, **{name: services[kind] for name, kind in parameters}) if parameters else endpoint
