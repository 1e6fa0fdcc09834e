"""Settings of a gateway, read from the environment."""

from typing import Annotated, Literal

from msgspec import Meta

from tailrace.proto.service import ModelSettings


class Settings(ModelSettings, frozen=True, kw_only=True):
    """Defaults work on a laptop; `python -m tailrace.gateway --env` prints this table."""

    host: Annotated[str, Meta(description="address to listen on; an address other than loopback requires API keys")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: a free port")] = 8000
    listen_fd: Annotated[
        int,
        Meta(
            ge=0, le=2**31 - 1, description="file descriptor of an inherited listening socket; 0: the gateway opens one"
        ),
    ] = 0
    api_keys: Annotated[
        str,
        Meta(description="TENANT:SHA256-HEX-OF-KEY pairs, separated by commas; empty: every client is tenant `local`"),
    ] = ""
    allow_anonymous: Annotated[
        bool | Literal["loopback"],
        Meta(description="serve requests without a credential until one exists; loopback: only on such an address"),
    ] = "loopback"
    first_key_file: Annotated[
        str, Meta(description="file that the gateway makes when it finds an API key; then requests always need one")
    ] = ""
    hosts: Annotated[
        str,
        Meta(
            description="host names that requests may name besides localhost, separated by commas; *: any;"
            " empty: any, if API keys are required"
        ),
    ] = ""
    origins: Annotated[
        str,
        Meta(
            description="origins of pages that may send requests from a browser (CORS), separated by commas: https://app.example"
        ),
    ] = ""
    body_bytes_max: Annotated[int, Meta(ge=1, description="largest request body")] = 32 * 1024 * 1024
    body_timeout_s: Annotated[float, Meta(gt=0, description="time limit for a request body")] = 120.0
    body_rate_min: Annotated[
        int, Meta(ge=1, description="lowest rate of a request body in bytes a second, measured over 15 s")
    ] = 2000
    large_bytes_max: Annotated[
        int,
        Meta(
            ge=1,
            description="memory for bodies above 256 kB: half for those that arrive, half for complete ones; "
            "WebSockets may hold a quarter beside it",
        ),
    ] = 512 * 1024 * 1024
    large_timeout_s: Annotated[
        float, Meta(gt=0, description="time that a large body waits for memory before its client gets a 503")
    ] = 10.0
    streams_max: Annotated[
        int, Meta(ge=1, description="open streams of this gateway; further clients get a 503 with Retry-After")
    ] = 10_000
    streams_tenant_max: Annotated[
        int, Meta(ge=1, description="open streams of one tenant; further clients get a 429")
    ] = 5_000
    streams_address_max: Annotated[
        int,
        Meta(
            ge=1,
            description="open streams without a credential of one IPv4 address or IPv6 /64 network; "
            "further clients get a 429",
        ),
    ] = 1_000
    stream_life_s: Annotated[
        float, Meta(gt=0, description="age at which a stream is closed, plus or minus 10 %; its reader reconnects")
    ] = 1800.0
    proxies: Annotated[
        str,
        Meta(
            description="addresses or networks of trusted proxies, separated by commas: their X-Forwarded-For and"
            " X-Forwarded-Proto headers are used"
        ),
    ] = ""
    accept_timeout_s: Annotated[
        float, Meta(gt=0, description="time limit for storing a request before the client gets a 503")
    ] = 4.5
    query_timeout_s: Annotated[
        float, Meta(gt=0, description="time limit for a query to persistence or to a generator")
    ] = 6.0
    queue_max: Annotated[
        int,
        Meta(
            ge=1,
            description="with so many turns waiting before it, a new turn is refused with a 503",
        ),
    ] = 10_000
    log_streams: Annotated[
        Literal["debug", "info"],
        Meta(description="level of the log lines when a stream opens, resumes, is cut and ends"),
    ] = "debug"
    heartbeat_s: Annotated[
        float,
        Meta(
            gt=0,
            description="silence after which a stream sends a heartbeat; "
            "clients of Tailrace reconnect after 40 s of silence",
        ),
    ] = 15.0
    linger_s: Annotated[float, Meta(ge=0, description="time that a turn stays in memory after its last reader")] = 10.0
    full_at: Annotated[float, Meta(gt=0, le=1, description="fill level of the log at which new turns are refused")] = (
        0.9
    )
    disk: Annotated[
        str,
        Meta(
            description="directory on the disk of the log and the database: new turns are refused while less than "
            "1 GiB, and less than 5 %, is free; empty: not checked (`up`: its data directory)"
        ),
    ] = ""
    max_tokens: Annotated[int, Meta(ge=1, description="output limit of a turn without `max_tokens`")] = 4096
    cache: Annotated[
        Literal["auto", "5m", "1h", "off"],
        Meta(description="prompt cache time of a turn without its own; auto: 5m if the prompt is long enough"),
    ] = "off"
    model_aliases: Annotated[
        str,
        Meta(description="NAME=MODEL pairs, separated by commas: other names for Claude's models"),
    ] = ""
