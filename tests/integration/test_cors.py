"""CORS over HTTP: preflights and answers for listed and other origins."""

import pytest

from tests.integration.conftest import Gateway, NewGateway

LISTED = "https://app.example, http://localhost:3000"
MAY = ("https://app.example", "http://localhost:3000")
MAY_NOT = (
    "https://evil.example",
    "http://app.example",
    "https://app.example:8443",
    "https://app.example.evil.example",
    "https://evil-app.example",
    "https://sub.app.example",
    "https://APP.example",
    "http://localhost",
    "http://127.0.0.1:3000",
    "null",
    "*",
    "file://",
    "",
)
ALLOW, CREDENTIALS = "access-control-allow-origin", "access-control-allow-credentials"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,idempotency-key,x-stainless-lang",
}


@pytest.fixture
async def listing(nats_url: str, new_gateway: NewGateway) -> Gateway:
    return await new_gateway(nats_url, origins=LISTED)


@pytest.mark.parametrize("origin", MAY)
async def test_a_listed_origin_may_send_requests_and_read_answers(listing: Gateway, origin: str) -> None:
    """Its preflight lets any header through; answers and errors are its own to read, with all of their headers."""
    preflight = await listing.client.options("/v1/turns", headers={"origin": origin, **PREFLIGHT})
    assert (preflight.status_code, preflight.headers[ALLOW]) == (200, origin)
    assert preflight.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
    assert {"POST", "DELETE"} <= set(preflight.headers["access-control-allow-methods"].split(", "))
    accepted = await listing.client.post("/v1/turns", json={"message": "hi"}, headers={"origin": origin})
    refused = await listing.client.get("/v1/turns/NONE", headers={"origin": origin})
    stranger = await listing.client.get("/v1/turns/NONE", headers={"origin": origin, "authorization": "Bearer nobodys"})
    assert [answer.status_code for answer in (accepted, refused, stranger)] == [202, 404, 401]
    for answer in (accepted, refused, stranger):
        assert (answer.headers[ALLOW], answer.headers["access-control-expose-headers"]) == (origin, "*")
        # Or a cache would give one page's answer to another's.
        assert "Origin" in answer.headers["vary"]
        assert CREDENTIALS not in answer.headers


@pytest.mark.rule("S7")
@pytest.mark.parametrize("origin", MAY_NOT)
async def test_another_origin_is_refused(listing: Gateway, origin: str) -> None:
    """Whatever looks like a listed one; `null` is every sandboxed page's."""
    preflight = await listing.client.options("/v1/turns", headers={"origin": origin, **PREFLIGHT})
    answer = await listing.client.get("/v1/turns/NONE", headers={"origin": origin})
    assert (preflight.status_code, answer.status_code) == (400, 404)
    for said in (preflight, answer):
        assert {ALLOW, CREDENTIALS}.isdisjoint(said.headers)
        assert "Origin" in said.headers["vary"]


async def test_an_internal_error_has_cors_headers(listing: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the headers a browser hides the status, the code and the body, and says that the network failed."""

    async def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("tailrace.gateway.models.catalogue.Catalogue.offer", broken)
    for path, body in (("/v1/models", None), ("/v1/turns", {"message": "hi"})):
        method = "GET" if body is None else "POST"
        answer = await listing.client.request(method, path, json=body, headers={"origin": MAY[0]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert (answer.headers[ALLOW], answer.headers["access-control-expose-headers"]) == (MAY[0], "*")
        assert "secret" not in answer.text
        stranger = await listing.client.request(method, path, json=body, headers={"origin": MAY_NOT[0]})
        assert (stranger.status_code, ALLOW in stranger.headers) == (500, False)


@pytest.mark.parametrize(
    ("origin", "asked", "is_told"),
    [
        (MAY[0], {"access-control-request-method": "PUT"}, True),
        (MAY[0], {"access-control-request-method": "TRACE", "access-control-request-headers": "a\tb"}, True),
        (MAY_NOT[0], PREFLIGHT, False),
        ("null", PREFLIGHT, False),
    ],
)
async def test_a_refused_preflight_has_the_error_body(
    listing: Gateway, origin: str, asked: dict[str, str], *, is_told: bool
) -> None:
    """JSON like every error; which origins may is said to those alone."""
    refused = await listing.client.options("/v1/turns", headers={"origin": origin, **asked})
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/json")
    assert (refused.json()["type"], refused.json()["error"]["code"]) == ("error", "preflight_refused")
    assert (refused.headers.get(ALLOW) == origin) is is_told
    assert "Origin" in refused.headers["vary"]


async def test_without_the_setting_there_are_no_cors_headers(lone_gateway: Gateway) -> None:
    """The default: a page elsewhere asks its own server, which asks this one."""
    headers = {"origin": "https://app.example"}
    preflight = await lone_gateway.client.options("/v1/turns", headers={**headers, **PREFLIGHT})
    answer = await lone_gateway.client.get("/v1/turns/NONE", headers=headers)
    assert (preflight.status_code, answer.status_code) == (405, 404)
    assert not [name for said in (preflight, answer) for name in said.headers if name.startswith("access-control")]


async def test_without_keys_a_listed_origin_may_post(nats_url: str, new_gateway: NewGateway) -> None:
    """A POST without JSON is sent by any page without asking: it is refused to all but those."""
    gateway = await new_gateway(nats_url, api_keys="", origins=LISTED)
    for origin, status in ((MAY[0], 404), ("https://evil.example", 403), ("null", 403)):
        headers = {"origin": origin, "sec-fetch-site": "cross-site"}
        assert (await gateway.client.post("/v1/turns/NONE/cancel", headers=headers)).status_code == status, origin
