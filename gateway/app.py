"""The app is a value: a list of routes, and how errors look."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from gateway import problem
from gateway.arrival import Arrival
from gateway.context import Gateway, tenant_of
from gateway.door.guard import guarded
from gateway.door.hosts import HostCheck, Hosts
from gateway.door.origin import cors, listed
from gateway.large import LargeBodies
from gateway.limits.rate_headers import RateHeaders
from gateway.routes import (
    api,
    batches,
    blobs,
    chat_completions,
    count_tokens,
    deletion,
    directory,
    health,
    login,
    messages,
    models,
    projects,
    prompts,
    responses,
    sessions,
    spending,
    tickets,
    turns,
    tutorials,
    ui_chat,
)
from gateway.rush import Rush
from proto.errors import LogError, Refused

ROUTES: list[Route] = [
    *turns.ROUTES,
    *tickets.ROUTES,
    *batches.ROUTES,
    *blobs.ROUTES,
    *deletion.ROUTES,
    *sessions.ROUTES,
    *projects.ROUTES,
    *spending.ROUTES,
    *login.ROUTES,
    *tutorials.ROUTES,
    *ui_chat.ROUTES,
    *chat_completions.ROUTES,
    *responses.ROUTES,
    *messages.ROUTES,
    *models.ROUTES,
    *prompts.ROUTES,
    *count_tokens.ROUTES,
    *health.ROUTES,
    *directory.ROUTES,
    *api.ROUTES,
]


def app(gateway: Gateway) -> Starlette:
    settings = gateway.settings
    starlette = Starlette(
        routes=[guarded(route) for route in ROUTES],
        middleware=[
            Middleware(HostCheck, hosts=Hosts(settings), is_key_needed=lambda: not gateway.door.is_open),
            *cors(listed(settings.origins)),
            # A page elsewhere may see that it is sent away, or its EventSource would give up.
            Middleware(Rush, urgent=health.PATHS),
            Middleware(problem.Unbroken),
            Middleware(RateHeaders, now=gateway.limits.now),
            Middleware(Arrival, rate_min=settings.body_rate_min),
            Middleware(
                LargeBodies,
                bytes_max=settings.large_bytes_max,
                body_bytes_max=settings.body_bytes_max,
                timeout_s=settings.large_timeout_s,
                whose=tenant_of,
            ),
        ],
        exception_handlers={
            Refused: problem.refused,
            LogError: problem.log_error,
            HTTPException: problem.http_error,
            Exception: problem.unexpected,
        },
    )
    # A redirect would send a body on to where nobody asked, with an address made from the Host header.
    starlette.router.redirect_slashes = False
    starlette.state.gateway = gateway
    return starlette
