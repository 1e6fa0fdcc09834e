"""The generator's settings, read from the environment."""

import re
import secrets
from typing import Annotated
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from msgspec import Meta

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import is_token
from tailrace.proto.service import ModelSettings

# A model may think for minutes without sending any of it.
PINGS_TIMEOUT_S = 300.0
# Each tenant adds six time series.
METRICS_TENANTS_MAX = 100
GRACE_S_MAX = 3600.0
# The characters of a header value.
API_KEY = re.compile(r"[\x21-\x7e]+")


class Settings(ModelSettings, frozen=True, kw_only=True):
    """Defaults work on a laptop; `python -m tailrace.generators --env` prints this table."""

    generator: Annotated[
        str, Meta(min_length=1, max_length=64, description="this process's name in the log; a suffix makes it unique")
    ] = "generator"
    concurrency: Annotated[int, Meta(ge=1, description="turns that this process runs at once")] = 96
    tenant_share: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="share of the free slots that the turns of one tenant may use, so that others need not wait; "
            "1: all of them",
        ),
    ] = 0.75
    backends: Annotated[
        str, Meta(description="backends in order of failover, also for single models: docs/BACKENDS.md")
    ] = "claude"
    anthropic_api_key: Annotated[str, Meta(description="Anthropic's API key, for claude and claude_code")] = ""
    anthropic_base_url: Annotated[str, Meta(description="URL of Anthropic's API, or of a compatible server")] = (
        "https://api.anthropic.com"
    )
    connect_timeout_s: Annotated[float, Meta(gt=0, description="time limit of a connection to the model")] = 10.0
    stall_timeout_s: Annotated[
        float, Meta(gt=0, description="time without data from the model after which its answer has broken off")
    ] = 30.0
    pings_timeout_s: Annotated[
        float,
        Meta(gt=0, description="time with only pings or comments from the model after which its answer has broken off"),
    ] = PINGS_TIMEOUT_S
    call_tries_max: Annotated[int, Meta(ge=1, description="calls in one attempt until one has a first event")] = 5
    call_wait_s: Annotated[float, Meta(ge=0, description="wait before the second call; doubles, with jitter")] = 0.5
    call_wait_max_s: Annotated[
        float, Meta(ge=0, description="longest wait between calls; a longer Retry-After fails the turn")
    ] = 30.0
    unreachable_wait_s: Annotated[
        float,
        Meta(
            ge=0,
            description="time that a turn without a further backend waits for a model that cannot be connected to; "
            "0: it fails after call_tries_max calls",
        ),
    ] = 60.0
    large_bytes_max: Annotated[
        int,
        Meta(
            ge=1,
            description="memory for pictures, documents and long texts until their answers begin; other calls wait",
        ),
    ] = 512 * 1024 * 1024
    delta_interval_s: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="time after a stored delta in which further deltas of its content block wait and become one "
            "event, which saves CPU time (docs/SIZING.md); 0: deltas wait only in a busy process, for at most 33 ms",
        ),
    ] = 0.0
    attempts_max: Annotated[
        int, Meta(ge=1, description="attempts at one turn, in a row, that add nothing to its answer; then it fails")
    ] = 5
    metrics_tenants: Annotated[
        str,
        Meta(
            description="tenants whose tokens and cost the metrics show, separated by commas, at most 100; all others "
            "are `other`; empty: no tenants"
        ),
    ] = ""
    deadline_s: Annotated[
        float, Meta(gt=0, description="working time, of all generators together, after which a turn fails")
    ] = 900.0
    grace_s: Annotated[
        float,
        Meta(
            ge=0,
            le=GRACE_S_MAX,
            description="time that running turns may continue after SIGTERM before others get them, up to an hour; a "
            "second SIGTERM ends it. With TAILRACE_DEADLINE_S or more, a restart repeats no model call. Under "
            "`tailrace up` the default is an hour for `tailrace restart`, and 5 s when `up` stops",
        ),
    ] = 5.0


def parse_tenants(text: str) -> set[str]:
    """Parses the setting `metrics_tenants`. Raises SettingsInvalid for an invalid tenant, and for too many tenants."""
    tenants = {name.strip() for name in text.split(",")} - {""}
    invalid = sorted(name for name in tenants if not is_token(name))
    if invalid:
        raise SettingsInvalid(f"TAILRACE_METRICS_TENANTS: {invalid[0]!r} is not the name of a tenant")
    if len(tenants) > METRICS_TENANTS_MAX:
        raise SettingsInvalid(f"TAILRACE_METRICS_TENANTS: {len(tenants)} tenants, at most {METRICS_TENANTS_MAX}")
    return tenants


def unique_name(settings: Settings) -> str:
    """Returns a name for the log. The name must be unique: an attempt is recognised by its name (PROTOCOL R13)."""
    return f"{settings.generator}-{secrets.token_hex(3)}"


def require_key(name: str, secret: str) -> None:
    """Raises SettingsInvalid for a key or token, the value of the variable `name`, that does not fit in a header."""
    if secret and API_KEY.fullmatch(secret) is None:
        raise SettingsInvalid(f"{name}: a key is visible ASCII, without spaces")
    if secret and secret[0] in "\"'":
        # `docker run --env-file` passes the quotes of a file on.
        raise SettingsInvalid(f"{name}: remove the quotes around the key")


def require_sound(settings: Settings) -> None:
    """Raises SettingsInvalid for a key that does not fit in a header, an unusable URL, and a SOCKS proxy."""
    require_key("ANTHROPIC_API_KEY", settings.anthropic_api_key)
    try:
        url = urlsplit(settings.anthropic_base_url)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise SettingsInvalid(f"ANTHROPIC_BASE_URL: {settings.anthropic_base_url!r} is no URL: expected https://HOST")
    if url.username is not None:
        # The SDK sends a header for the key, and its HTTP client refuses a second one. The message has no password.
        raise SettingsInvalid("ANTHROPIC_BASE_URL: a URL with a user cannot be called: expected https://HOST")
    if url.path.rstrip("/").endswith("/v1"):
        raise SettingsInvalid("ANTHROPIC_BASE_URL: remove /v1 from its end: each call adds /v1/messages")
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all", "")
    if proxy.lower().startswith("socks") and not proxy_bypass(str(url.hostname)):
        raise SettingsInvalid(
            "the environment names a SOCKS proxy, through which the model cannot be called: set HTTPS_PROXY to an "
            f"http:// proxy, or add {url.hostname} to NO_PROXY"
        )
