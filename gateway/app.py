"""The app is a value: a list of routes, and how errors look."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from tailrace.gateway import error_responses
from tailrace.gateway.auth.allowed_hosts import AllowedHosts, HostMiddleware
from tailrace.gateway.auth.cors import cors_middleware, parse_origins
from tailrace.gateway.auth.guard import guard
from tailrace.gateway.clients.ai_sdk import routes as ui_chat
from tailrace.gateway.clients.anthropic import count_tokens, routes
from tailrace.gateway.clients.native import routes as turns
from tailrace.gateway.clients.openai import chat_routes, responses_routes
from tailrace.gateway.clients.tutorials import routes as tutorials
from tailrace.gateway.dependencies import Gateway, tenant_of
from tailrace.gateway.http.admission_queue import AdmissionQueue
from tailrace.gateway.http.large_bodies import LargeBodyLimit
from tailrace.gateway.http.slow_body import SlowBodyTimeout
from tailrace.gateway.limits.rate_headers import RateHeaders
from tailrace.gateway.resources import (
    batches,
    blobs,
    deletion,
    docs,
    health,
    index,
    login,
    models,
    projects,
    prompts,
    sessions,
    tickets,
    usage,
)
from tailrace.proto.errors import LogError, Refused

ROUTES: list[Route] = [
    *turns.ROUTES,
    *tickets.ROUTES,
    *batches.ROUTES,
    *blobs.ROUTES,
    *deletion.ROUTES,
    *sessions.ROUTES,
    *projects.ROUTES,
    *usage.ROUTES,
    *login.ROUTES,
    *tutorials.ROUTES,
    *ui_chat.ROUTES,
    *chat_routes.ROUTES,
    *responses_routes.ROUTES,
    *routes.ROUTES,
    *models.ROUTES,
    *prompts.ROUTES,
    *count_tokens.ROUTES,
    *health.ROUTES,
    *index.ROUTES,
    *docs.ROUTES,
]


def app(gateway: Gateway) -> Starlette:
    settings = gateway.settings
    starlette = Starlette(
        routes=[guard(route) for route in ROUTES],
        middleware=[
            Middleware(HostMiddleware, hosts=AllowedHosts(settings), is_key_needed=lambda: not gateway.door.is_open),
            *cors_middleware(parse_origins(settings.origins)),
            # A page elsewhere may see that it is sent away, or its EventSource would give up.
            Middleware(AdmissionQueue, urgent=health.PATHS),
            Middleware(error_responses.Unbroken),
            Middleware(RateHeaders, now=gateway.limits.now),
            Middleware(SlowBodyTimeout, rate_min=settings.body_rate_min),
            Middleware(
                LargeBodyLimit,
                bytes_max=settings.large_bytes_max,
                body_bytes_max=settings.body_bytes_max,
                timeout_s=settings.large_timeout_s,
                whose=tenant_of,
            ),
        ],
        exception_handlers={
            Refused: error_responses.refused,
            LogError: error_responses.log_error,
            HTTPException: error_responses.http_error,
            Exception: error_responses.unexpected,
        },
    )
    # A redirect would send a body on to where nobody asked, with an address made from the Host header.
    starlette.router.redirect_slashes = False
    starlette.state.gateway = gateway
    return starlette
