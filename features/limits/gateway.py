"""Makes the limiter of a gateway, and counts the requests of operators."""

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tailrace.features.limits import percents
from tailrace.features.limits.limiter import Limiter
from tailrace.features.limits.percents import parse_percents
from tailrace.features.limits.rates import parse_limits_setting
from tailrace.features.limits.rests import ROUTES
from tailrace.features.limits.soft_limits import SoftLimits
from tailrace.features.limits.storage_share import BLOBS, LOG, StorageShare
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.limits import Limits
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.route import Route
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import Refused
from tailrace.proto.nats import Counters, Slots

# Requests of one credential to the routes for operators in a minute, at all gateways together.
OPERATOR_REQUESTS_MAX = 120
COST_USD_MAX = 1e6


class Settings(percents.Settings, frozen=True, kw_only=True):
    """The limits of keys and tenants that have no own limits."""

    limits_key: Annotated[
        str,
        Meta(
            description="NAME=NUMBER pairs, separated by commas: limits of each key without its own limits; "
            "requests, burst, tokens (a minute), running, streams, usd_day, usd_month, bytes_day"
        ),
    ] = ""
    limits_tenant: Annotated[str, Meta(description="the same limits for all keys of a tenant together")] = ""
    tenant_log_share: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="share of the log that one tenant may fill in a day, and of the blob store in a week, once "
            "they are 70 % full",
        ),
    ] = 0.4


def common_limits(settings: Settings) -> tuple[Limits, Limits]:
    """Returns the limits of keys and of tenants without limits of their own. Raises SettingsInvalid."""
    return (
        parse_limits_setting("TAILRACE_LIMITS_KEY", settings.limits_key),
        parse_limits_setting("TAILRACE_LIMITS_TENANT", settings.limits_tenant),
    )


async def check(settings: Settings) -> None:
    """Raises SettingsInvalid for limits that are not valid."""
    common_limits(settings)
    parse_percents(settings.soft_limits)


def counted(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an endpoint that counts the requests of operators, and refuses those above `OPERATOR_REQUESTS_MAX`."""

    @wraps(endpoint)
    async def respond(request: ApiRequest, operator_limiter: Limiter, **services: Any) -> Any:
        await operator_limiter.count_operator(request.principal, OPERATOR_REQUESTS_MAX)
        return await endpoint(request, **services)

    # The gateway passes services by annotations.
    respond.__annotations__ = endpoint.__annotations__ | {"operator_limiter": Limiter}
    return respond


def wrap(route: Route) -> Route:
    """Returns a route for operators with their request limit, and any other route as it is."""
    return msgspec.structs.replace(route, endpoint=counted(route.endpoint)) if route.need == "admin" else route


def check_max_cost(new_turn: NewTurn) -> None:
    """Raises Refused for a limit that is not above 0, or too large for nano-dollars."""
    if new_turn.max_cost is not None and not 0 < new_turn.max_cost <= COST_USD_MAX:
        raise Refused("request_invalid", f"`max_cost` is dollars, above 0 and at most {COST_USD_MAX:,.0f}")


def start(gateway: Gateway, settings: Settings) -> Parts:
    """Makes the limiter, whose counters and slots all gateways share."""
    counters, fullness = Counters(gateway.connection), gateway.log_fullness
    log_share = StorageShare(LOG, counters, lambda: fullness.log, settings.tenant_log_share)
    blob_share = StorageShare(BLOBS, counters, lambda: fullness.blobs, settings.tenant_log_share)
    soft_limits = SoftLimits(
        parse_percents(settings.soft_limits), counters, gateway.history, gateway.authenticator.api_keys.ids_counted_as
    )
    limiter = Limiter(
        counters,
        Slots(gateway.connection),
        gateway.log,
        *common_limits(settings),
        own_limits_of=gateway.authenticator.api_keys.limits.get,
        log_share=log_share,
        blob_share=blob_share,
        soft_limits=soft_limits,
    )
    return Parts(
        services=(limiter,),
        background=(
            limiter.streams.renew_periodically,
            log_share.flush_periodically,
            blob_share.flush_periodically,
            soft_limits.run,
        ),
        limiter=limiter,
        steps=OptionalSteps(check_max_cost=check_max_cost),
    )


FEATURE = Feature(Settings, start, check=check, routes=ROUTES, wrap=wrap)
