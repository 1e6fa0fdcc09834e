"""What a gateway can be told by its environment."""

from typing import Annotated, Literal

from msgspec import Meta

from tailrace.proto.service import ProcessSettings


class Settings(ProcessSettings, frozen=True, kw_only=True):
    """Defaults work on a laptop; `python -m tailrace.gateway --env` prints this table."""

    host: Annotated[str, Meta(description="address to listen on; other than loopback needs a key")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: a free one")] = 8000
    listen_fd: Annotated[int, Meta(ge=0, description="a listening socket that was inherited; 0: open one")] = 0
    api_keys: Annotated[
        str, Meta(description="TENANT:SHA256-HEX-OF-KEY, several joined by commas; none: everybody is tenant `local`")
    ] = ""
    jwt_secret: Annotated[
        str, Meta(description="what tokens (JWT) of another login are signed with by HS256; none: no such tokens")
    ] = ""
    jwt_keys: Annotated[
        str, Meta(description="URL or file of the keys (JWKS) that tokens are signed with by RS256 or ES256")
    ] = ""
    jwt_issuer: Annotated[str, Meta(description="`iss` of the tokens that are taken")] = ""
    jwt_audience: Annotated[str, Meta(description="`aud` of the tokens that are taken")] = ""
    jwt_tenant_claim: Annotated[str, Meta(min_length=1, description="claim that says whose turns they are")] = "sub"
    jwt_scopes_claim: Annotated[str, Meta(description="claim that lists ask, read, manage; none: all of them")] = ""
    allow_anonymous: Annotated[
        bool, Meta(description="serve everybody without a key on an address other than loopback")
    ] = False
    hosts: Annotated[
        str,
        Meta(
            description="names besides localhost by which clients may ask, joined by commas; * for any;"
            " none: any, where keys are asked for"
        ),
    ] = ""
    origins: Annotated[
        str,
        Meta(
            description="origins whose pages may ask from their browsers (CORS), joined by commas: https://app.example"
        ),
    ] = ""
    body_bytes_max: Annotated[int, Meta(ge=1, description="largest request body")] = 32 * 1024 * 1024
    body_timeout_s: Annotated[float, Meta(gt=0, description="how long a client may take to send a body")] = 120.0
    body_rate_min: Annotated[
        int, Meta(ge=1, description="bytes of its body that a client has to send a second, measured over 15 s")
    ] = 2000
    large_bytes_max: Annotated[
        int, Meta(ge=1, description="bytes of bodies above 256 kB that are read at once, half of it for one tenant")
    ] = 256 * 1024 * 1024
    large_timeout_s: Annotated[
        float, Meta(gt=0, description="how long a large body waits to be read before its client gets a 503")
    ] = 10.0
    streams_max: Annotated[
        int, Meta(ge=1, description="streams that are open here at once; more get a 503 and come again")
    ] = 10_000
    streams_tenant_max: Annotated[int, Meta(ge=1, description="the same, of one tenant; more get a 429")] = 5_000
    streams_address_max: Annotated[
        int, Meta(ge=1, description="the same, from one address, or one /64 of IPv6; more get a 429")
    ] = 1_000
    stream_life_s: Annotated[
        float, Meta(gt=0, description="age at which a stream is closed, give or take a tenth; its reader comes back")
    ] = 1800.0
    proxies: Annotated[
        str,
        Meta(
            description="addresses or networks of your proxies, joined by commas, whose X-Forwarded-For and"
            " X-Forwarded-Proto are believed"
        ),
    ] = ""
    accept_timeout_s: Annotated[
        float, Meta(gt=0, description="how long the log may take to accept a turn before the client gets a 503")
    ] = 4.5
    query_timeout_s: Annotated[
        float, Meta(gt=0, description="how long persistence, or a generator that is asked about models, may take")
    ] = 6.0
    heartbeat_s: Annotated[float, Meta(gt=0, description="silence after which a stream is sent a heartbeat")] = 15.0
    linger_s: Annotated[
        float, Meta(ge=0, description="how long a turn is kept in memory for readers that come back")
    ] = 10.0
    full_at: Annotated[
        float, Meta(gt=0, le=1, description="share of the stream's bytes from which new turns are refused")
    ] = 0.9
    max_tokens: Annotated[int, Meta(ge=1, description="output limit of a turn that names none")] = 4096
    limits_key: Annotated[
        str,
        Meta(
            description="NAME=NUMBER, several joined by commas: what each key may that has no limits of its own; "
            "requests, burst, tokens (a minute), running, streams, usd_day, usd_month, bytes_day"
        ),
    ] = ""
    limits_tenant: Annotated[str, Meta(description="the same, for all keys of each tenant together")] = ""
    hedge_after_s: Annotated[
        float, Meta(ge=0, description="as the generators have it; not 0: limits hold a second call's prompt, too")
    ] = 0.0
    prompts: Annotated[
        str, Meta(description="folder of prompt templates, NAME.j2, which are read at the start; none: there are none")
    ] = ""
    cache: Annotated[
        Literal["auto", "5m", "1h", "off"],
        Meta(
            description="how long the model keeps the prompt of a turn that does not say; auto: 5m if it is long enough"
        ),
    ] = "off"
    model_aliases: Annotated[
        str,
        Meta(description="NAME=MODEL, several joined by commas: foreign names, and which of Claude's models they mean"),
    ] = ""
    webhooks: Annotated[
        bool, Meta(description="whether a turn may name a webhook; persistence sends it, and needs webhook_key")
    ] = False
    webhook_private_hosts: Annotated[
        str, Meta(description="hosts, joined by commas, whose webhooks may go to private addresses and by plain http")
    ] = ""
