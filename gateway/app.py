"""The ASGI application: its routes, middleware and error handlers."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route

from tailrace.gateway import error_responses
from tailrace.gateway.auth.allowed_hosts import AllowedHosts, HostMiddleware
from tailrace.gateway.auth.cors import cors_middleware, parse_origins
from tailrace.gateway.auth.guard import guard
from tailrace.gateway.clients.ai_sdk.routes import ROUTES as AI_SDK_ROUTES
from tailrace.gateway.clients.anthropic.count_tokens import ROUTES as COUNT_TOKENS_ROUTES
from tailrace.gateway.clients.anthropic.routes import ROUTES as ANTHROPIC_ROUTES
from tailrace.gateway.clients.native.routes import ROUTES as NATIVE_ROUTES
from tailrace.gateway.clients.openai.chat_routes import ROUTES as OPENAI_CHAT_ROUTES
from tailrace.gateway.clients.openai.responses_routes import ROUTES as OPENAI_RESPONSES_ROUTES
from tailrace.gateway.clients.tutorials.routes import ROUTES as TUTORIAL_ROUTES
from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.http.admission_queue import AdmissionQueue
from tailrace.gateway.openapi.routes import ROUTES as OPENAPI_ROUTES
from tailrace.gateway.resources import (
    batches,
    blobs,
    deletion,
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
    *NATIVE_ROUTES,
    *tickets.ROUTES,
    *batches.ROUTES,
    *blobs.ROUTES,
    *deletion.ROUTES,
    *sessions.ROUTES,
    *projects.ROUTES,
    *usage.ROUTES,
    *login.ROUTES,
    *TUTORIAL_ROUTES,
    *AI_SDK_ROUTES,
    *OPENAI_CHAT_ROUTES,
    *OPENAI_RESPONSES_ROUTES,
    *ANTHROPIC_ROUTES,
    *models.ROUTES,
    *prompts.ROUTES,
    *COUNT_TOKENS_ROUTES,
    *health.ROUTES,
    *index.ROUTES,
    *OPENAPI_ROUTES,
]


def app(gateway: Gateway) -> Starlette:
    settings = gateway.settings
    starlette = Starlette(
        routes=[guard(route) for route in ROUTES],
        middleware=[
            Middleware(
                HostMiddleware, hosts=AllowedHosts(settings), is_key_needed=lambda: not gateway.authenticator.is_open
            ),
            *cors_middleware(parse_origins(settings.origins)),
            # Behind CORS: an EventSource of another origin must be able to read that it is rejected.
            Middleware(AdmissionQueue, urgent=health.PATHS),
            # The last handler of Starlette stands outside of CORS.
            Middleware(ExceptionMiddleware, handlers={Exception: error_responses.unexpected}),
        ],
        exception_handlers={
            Refused: error_responses.refused,
            LogError: error_responses.refused,
            HTTPException: error_responses.http_error,
            Exception: error_responses.unexpected,
        },
    )
    # A redirect would repeat the body to an address that is made from the Host header.
    starlette.router.redirect_slashes = False
    starlette.state.gateway = gateway
    return starlette
