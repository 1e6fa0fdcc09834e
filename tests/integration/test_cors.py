"""CORS over HTTP: preflights and answers for allowed and other origins."""

import pytest

from tests.integration.conftest import Gateway, NewGateway

ALLOWED = ("https://app.example", "http://localhost:3000")
# `null` is the origin of every sandboxed page.
OTHERS = ("http://app.example", "https://app.example:8443", "https://app.example.evil.example", "null", "*", "")
ALLOW, EXPOSE = "access-control-allow-origin", "access-control-expose-headers"
CREDENTIALS = "access-control-allow-credentials"
METHOD, REQUESTED = "access-control-request-method", "access-control-request-headers"
PREFLIGHT = {METHOD: "POST", REQUESTED: "authorization,content-type,idempotency-key,x-stainless-lang"}


@pytest.fixture
async def listing(nats_url: str, new_gateway: NewGateway) -> Gateway:
    """A gateway with a list of allowed origins."""
    return await new_gateway(nats_url, origins=", ".join(ALLOWED))


@pytest.mark.parametrize("origin", ALLOWED)
async def test_an_allowed_origin_may_send_any_header_and_read_all_answers(listing: Gateway, origin: str) -> None:
    client, headers = listing.client, {"origin": origin}
    preflight = await client.options("/v1/turns", headers={**headers, **PREFLIGHT})
    assert (preflight.status_code, preflight.headers[ALLOW]) == (200, origin)
    assert preflight.headers["access-control-allow-headers"] == PREFLIGHT[REQUESTED]
    assert {"POST", "PUT", "DELETE"} <= set(preflight.headers["access-control-allow-methods"].split(", "))
    answers = [
        await client.post("/v1/turns", json={"message": "hi"}, headers=headers),
        await client.get("/v1/turns/NONE", headers=headers),
        await client.get("/v1/turns/NONE", headers={**headers, "authorization": "Bearer unknown"}),
    ]
    assert [answer.status_code for answer in answers] == [202, 404, 401]
    for answer in answers:
        assert (answer.headers[ALLOW], answer.headers[EXPOSE]) == (origin, "*")
        # A cache must not return the answer to another origin.
        assert "Origin" in answer.headers["vary"]
        assert CREDENTIALS not in answer.headers


@pytest.mark.rule("S7")
async def test_other_origins_get_no_cors_headers(listing: Gateway) -> None:
    for origin in OTHERS:
        preflight = await listing.client.options("/v1/turns", headers={"origin": origin, **PREFLIGHT})
        answer = await listing.client.get("/v1/turns/NONE", headers={"origin": origin})
        assert (preflight.status_code, answer.status_code) == (400, 404), origin
        for response in (preflight, answer):
            assert {ALLOW, CREDENTIALS}.isdisjoint(response.headers), origin
            assert "Origin" in response.headers["vary"]


async def test_an_internal_error_has_cors_headers(listing: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them a browser hides status and body and reports a network error."""

    async def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("tailrace.gateway.models.catalogue.Catalogue.offer", fail)
    for method, path, body in (("GET", "/v1/models", None), ("POST", "/v1/turns", {"message": "hi"})):
        answer = await listing.client.request(method, path, json=body, headers={"origin": ALLOWED[0]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert (answer.headers[ALLOW], answer.headers[EXPOSE]) == (ALLOWED[0], "*")
        assert "secret" not in answer.text
        other = await listing.client.request(method, path, json=body, headers={"origin": OTHERS[0]})
        assert (other.status_code, ALLOW in other.headers) == (500, False)


@pytest.mark.parametrize(
    ("origin", "headers", "is_allowed"),
    [
        (ALLOWED[0], {METHOD: "CONNECT"}, True),
        (ALLOWED[0], {METHOD: "TRACE", REQUESTED: "a\tb"}, True),
        (OTHERS[0], PREFLIGHT, False),
        ("null", PREFLIGHT, False),
    ],
)
async def test_a_refused_preflight_has_the_error_body(
    listing: Gateway, origin: str, headers: dict[str, str], *, is_allowed: bool
) -> None:
    refused = await listing.client.options("/v1/turns", headers={"origin": origin, **headers})
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/json")
    assert (refused.json()["type"], refused.json()["error"]["code"]) == ("error", "preflight_refused")
    assert (refused.headers.get(ALLOW) == origin) is is_allowed
    assert "Origin" in refused.headers["vary"]


@pytest.mark.parametrize(
    ("origin", "advice"),
    [("https://app.example", "add it to TAILRACE_ORIGINS"), ("null", "serve it over HTTP")],
)
async def test_without_the_setting_there_are_no_cors_headers(lone_gateway: Gateway, origin: str, advice: str) -> None:
    headers = {"origin": origin}
    preflight = await lone_gateway.client.options("/v1/turns", headers={**headers, **PREFLIGHT})
    answer = await lone_gateway.client.get("/v1/turns/NONE", headers=headers)
    assert (preflight.status_code, answer.status_code) == (405, 404)
    assert advice in preflight.json()["error"]["message"]
    names = [name for response in (preflight, answer) for name in response.headers]
    assert not [name for name in names if name.startswith("access-control")]
