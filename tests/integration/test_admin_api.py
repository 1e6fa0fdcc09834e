"""The routes for operators: the scope that they need, what they change, and the audit log."""

import argparse
import asyncio
import re
import time
from pathlib import Path

import httpx2
import msgspec
import nats.js.errors
import pytest
from nats.js.api import DiscardPolicy

from tailrace.deploy.cli import limits
from tailrace.deploy.cli.keys import create
from tailrace.deploy.cli.limits import apply_change
from tailrace.deploy.cli.main import main
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.limits import gateway as limits_feature
from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, Rpc
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.subjects import AUDIT
from tests.harness.forks import run_command
from tests.harness.processes import CHECKOUT, as_user
from tests.harness.until import until, until_equal
from tests.integration.conftest import Gateway, NewGateway

CHANGES: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("POST", "/v1/admin/keys", {"tenant": "acme"}),
    ("POST", "/v1/admin/keys/{}/rotate", {}),
    ("DELETE", "/v1/admin/keys/{}", {}),
    ("PUT", "/v1/admin/tenants/acme/limits", {"limits": {}}),
    ("PUT", "/v1/admin/tenants/acme", {"users": "private"}),
)
TURN = {"message": "#sim words=1 rate=0"}


@pytest.fixture
async def gateway(own_server: NatsServer, new_gateway: NewGateway) -> Gateway:
    """A gateway whose client has an admin key."""
    made, _ = await create(own_server.url, Tenant("operators"), "panel", ["admin"])
    gateway = await new_gateway(own_server.url)
    gateway.client.headers["authorization"] = f"Bearer {made.secret}"
    return gateway


async def new_key(gateway: Gateway, **given: object) -> dict[str, str]:
    answer = await gateway.client.post("/v1/admin/keys", json={"tenant": "acme", **given})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def has_status(gateway: Gateway, key: str, expected: int, path: str = "/v1/models/capabilities") -> bool:
    return (await gateway.client.get(path, headers={"authorization": f"Bearer {key}"})).status_code == expected


async def audit(gateway: Gateway, query: str = "") -> list[dict[str, object]]:
    return list((await gateway.client.get(f"/v1/admin/audit{query}")).json()["data"])


async def test_a_gateway_without_keys_refuses_to_create_the_first_one(
    own_server: NatsServer, new_gateway: NewGateway
) -> None:
    """It would close the gateway to all others."""
    gateway = await new_gateway(own_server.url, api_keys="")
    answer = await gateway.client.post("/v1/admin/keys", json={"tenant": "acme"}, headers={"authorization": ""})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing")
    assert "--scope admin" in answer.json()["error"]["message"]


@pytest.mark.rule("R107")
async def test_a_key_is_created_rotated_and_revoked_with_entries_in_the_audit_log(
    gateway: Gateway, own_server: NatsServer, new_gateway: NewGateway, own_connection: Connection
) -> None:
    """At all gateways. A key without the scope is refused, and no entry contains a secret."""
    other = await new_gateway(own_server.url)
    first = await new_key(gateway, name="shop", scopes=["read"], limits={"requests": 9}, expires_in_s=900)
    await until(lambda: has_status(other, first["key"], 200))
    bearer = {"authorization": f"Bearer {first['key']}"}
    for method, path, body in CHANGES:
        answer = await gateway.client.request(method, path.format(first["id"]), json=body, headers=bearer)
        assert answer.status_code == 403
    rotated = (await gateway.client.post(f"/v1/admin/keys/{first['id']}/rotate", json={"grace_s": 600})).json()
    kept = ("tenant", "name", "scopes", "limits")
    assert {name: rotated[name] for name in kept} == {name: first[name] for name in kept}
    await until(lambda: has_status(other, rotated["key"], 200))
    assert await has_status(other, first["key"], 200)
    assert (await gateway.client.delete(f"/v1/admin/keys/{rotated['id']}")).json()["revoked_at"] is not None
    await until(lambda: has_status(other, rotated["key"], 401))
    for path in (f"/v1/admin/keys/{rotated['id']}/rotate", "/v1/admin/keys/key_0000000000000000/rotate"):
        assert (await gateway.client.post(path, json={})).json()["error"]["code"] == "key_not_found"
    # Keys of the same second are in the order of their ids.
    oldest, newest = sorted((first, rotated), key=lambda key: (key["created_at"], key["id"]))
    shown = (await gateway.client.get("/v1/admin/keys?tenant=acme&limit=1")).json()
    assert ([key["id"] for key in shown["data"]], shown["next"]) == ([oldest["id"]], oldest["id"])
    rest = (await gateway.client.get(f"/v1/admin/keys?tenant=acme&after={oldest['id']}")).json()
    assert ([key["id"] for key in rest["data"]], rest["has_more"]) == ([newest["id"]], False)
    (replaced,) = [key for key in shown["data"] + rest["data"] if key["id"] == first["id"]]
    assert replaced["expires_at"] <= time.time() + 600

    entries = await audit(gateway)
    assert [(entry["action"], entry["target"]) for entry in entries[:3]] == [
        ("key.revoke", rotated["id"]),
        ("key.rotate", first["id"]),
        ("key.create", first["id"]),
    ]
    assert [entry["by"] for entry in entries[2:]] == [entries[0]["by"], "command line"]
    assert entries[0]["address"] == "127.0.0.1"
    text = str(entries)
    assert not [secret for secret in ("sha256", first["key"], rotated["key"]) if secret in text]
    page = (await gateway.client.get("/v1/admin/audit?limit=3")).json()
    assert await audit(gateway, f"?after={page['next']}") == entries[3:]
    for attack in (own_connection.jetstream.purge_stream(AUDIT), own_connection.jetstream.delete_msg(AUDIT, 1)):
        with pytest.raises(nats.js.errors.APIError):
            await attack


@pytest.mark.rule("R107")
async def test_the_last_admin_key_is_rotated_but_not_revoked(gateway: Gateway) -> None:
    """Keys that end within a day do not count: one with a lifetime, and one in the grace of its rotation."""
    (mine,) = (await gateway.client.get("/v1/admin/keys")).json()["data"]

    async def assert_is_kept(key: str) -> None:
        refused = await gateway.client.delete(f"/v1/admin/keys/{key}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "last_admin_key")

    await assert_is_kept(mine["id"])
    await new_key(gateway, tenant="operators", scopes=["admin"], expires_in_s=3600)
    rotated = (await gateway.client.post(f"/v1/admin/keys/{mine['id']}/rotate", json={"grace_s": 2592000})).json()
    await assert_is_kept(rotated["id"])
    last = (await gateway.client.post(f"/v1/admin/keys/{rotated['id']}/rotate", json={})).json()
    await until(lambda: has_status(gateway, last["key"], 200, "/v1/admin/keys"))
    assert await has_status(gateway, rotated["key"], 401, "/v1/admin/keys")


@pytest.mark.rule("S2")
async def test_an_entry_that_cannot_be_read_hides_no_other(gateway: Gateway, own_connection: Connection) -> None:
    """A compromised gateway could store one, and no operator could ever delete it."""
    for data in (b"", b"{}", b'{"action": "newer"}'):
        await own_connection.jetstream.publish(subjects.audit("junk"), data)
    await new_key(gateway)
    assert [entry["action"] for entry in await audit(gateway)] == ["key.create"] * 2
    assert await audit(gateway, "?limit=4") == (await audit(gateway))[:1]


@pytest.mark.rule("R107")
async def test_nothing_is_changed_without_an_entry_and_a_failed_change_has_two(
    gateway: Gateway, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    jetstream = own_connection.jetstream
    key = await new_key(gateway)
    before = (await gateway.client.get("/v1/admin/keys")).json()

    async def fail(*_: object) -> None:
        raise LogUnavailable("the bucket is full")

    with monkeypatch.context() as patched:
        patched.setattr(KeyStore, "create", fail)
        assert (await gateway.client.post("/v1/admin/keys", json={"tenant": "acme"})).status_code == 503
    failed, begun, *_ = await audit(gateway)
    assert (failed["target"], failed["error"], begun.get("error")) == (begun["target"], "the bucket is full", None)
    stored = (await jetstream.stream_info(AUDIT)).config
    await jetstream.update_stream(stored.evolve(max_msgs=2, discard=DiscardPolicy.NEW))
    for method, path, body in CHANGES:
        refused = await gateway.client.request(method, path.format(key["id"]), json=body)
        assert refused.status_code == 503, path
    assert (await gateway.client.get("/v1/admin/keys")).json() == before


@pytest.mark.rule("R107")
async def test_two_admin_keys_that_revoke_each_other_at_once_do_not_both_end(gateway: Gateway) -> None:
    (mine,) = (await gateway.client.get("/v1/admin/keys")).json()["data"]
    other = await new_key(gateway, tenant="operators", scopes=["admin", "admin"])
    assert list(other["scopes"]) == ["admin"]
    await until(lambda: has_status(gateway, other["key"], 200, "/v1/admin/keys"))
    answers = await asyncio.gather(
        gateway.client.delete(f"/v1/admin/keys/{other['id']}"),
        gateway.client.delete(f"/v1/admin/keys/{mine['id']}", headers={"authorization": f"Bearer {other['key']}"}),
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409]


@pytest.mark.rule("R107")
async def test_rotations_of_a_key_at_once_create_one_key(gateway: Gateway) -> None:
    """Also in its grace, with the lifetime of the old one."""
    old = await new_key(gateway, expires_in_s=900)
    path = f"/v1/admin/keys/{old['id']}/rotate"
    answers = [
        *await asyncio.gather(*(gateway.client.post(path, json={"grace_s": 60}) for _ in range(6))),
        await gateway.client.post(path, json={"grace_s": 60}),
    ]
    (made,) = [answer.json() for answer in answers if answer.status_code == 201]
    codes = [answer.json()["error"]["code"] for answer in answers if answer.status_code == 409]
    assert codes == ["key_replaced"] * 6
    keys = (await gateway.client.get("/v1/admin/keys?tenant=acme")).json()["data"]
    assert {key["id"] for key in keys if key["revoked_at"] is None} == {old["id"], made["id"]}
    assert made["expires_at"] - made["created_at"] == 900
    replaced = {key["id"]: (key["replaces"], key["replaced_by"]) for key in keys if key["revoked_at"] is None}
    assert replaced == {old["id"]: (None, made["id"]), made["id"]: (old["id"], None)}


@pytest.mark.rule("R107")
async def test_a_rotation_does_not_renew_what_a_key_has_used_of_its_limits(gateway: Gateway) -> None:
    """Otherwise a key that is rotated every day has its monthly budget every day."""

    async def post(key: dict[str, str]) -> httpx2.Response:
        await until(lambda: has_status(gateway, key["key"], 200))
        headers = {"authorization": f"Bearer {key['key']}"}
        return await gateway.client.post("/v1/turns", json=TURN, headers=headers)

    key = await new_key(gateway, limits={"running": 1})
    assert (await post(key)).status_code == 202
    for _ in range(2):
        rotated = await gateway.client.post(f"/v1/admin/keys/{key['id']}/rotate", json={"grace_s": 60})
        key = rotated.json()
        refused = await post(key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_turns")


@pytest.mark.rule("R108")
async def test_limits_of_a_tenant_apply_at_every_gateway_until_they_are_removed(
    gateway: Gateway, own_server: NatsServer, new_gateway: NewGateway
) -> None:
    """Those of the settings apply for the limits that the tenant does not have."""
    other = await new_gateway(own_server.url, limits_tenant="usd_day=7")
    key = (await new_key(gateway))["key"]
    path = "/v1/admin/tenants/acme/limits"
    for wrong in ({"requests": -1}, {"request": 1}):
        refused = await gateway.client.put(path, json={"limits": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limits")
    alone = {"limits": {"burst": 1}}
    new = {"tenant": "acme", **alone}
    for refused in (await gateway.client.put(path, json=alone), await gateway.client.post("/v1/admin/keys", json=new)):
        assert refused.status_code == 400
        assert "`burst` needs `requests`: set both" in refused.json()["error"]["message"]
    assert (await gateway.client.put("/v1/admin/tenants/a.b/limits", json={"limits": {}})).status_code == 400

    async def post() -> int:
        headers = {"authorization": f"Bearer {key}"}
        return (await other.client.post("/v1/turns", json=TURN, headers=headers)).status_code

    await until(lambda: has_status(other, key, 200))
    assert (await gateway.client.put(path, json={"limits": {"requests": 1}})).json()["effective"] == {"requests": 1}
    await until_equal(post, 429)
    await gateway.client.put(path, json={"limits": {}})
    await until_equal(post, 202)
    assert (await gateway.client.get(path)).json() == {
        "tenant": "acme",
        "users": "shared",
        "limits": {},
        "effective": {},
        "budgets": [],
    }
    names = [one["tenant"] for one in (await gateway.client.get("/v1/admin/tenants")).json()["data"]]
    assert names == ["acme", "operators"]
    changes = [(one.get("before"), one.get("after")) for one in await audit(gateway) if one["action"] == "limits.set"]
    assert changes == [({"requests": 1}, {}), (None, {"requests": 1})]


async def test_a_limit_is_shown_as_it_was_given(gateway: Gateway) -> None:
    """A count stays a whole number, also in the stored record."""
    given = {"requests": 600, "usd_month": 0.5}
    await gateway.client.put("/v1/admin/tenants/acme/limits", json={"limits": given})
    await new_key(gateway, limits=given)
    for path in ("tenants/acme/limits", "keys?tenant=acme", "audit"):
        shown = (await gateway.client.get(f"/v1/admin/{path}")).text
        assert '"limits":{"requests":600,"usd_month":0.5}' in shown, path


async def test_a_credential_has_so_many_requests_a_minute(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one of seven is refused, also if the minute ends in between."""
    monkeypatch.setattr(limits_feature, "OPERATOR_REQUESTS_MAX", 3)
    first, *others = [await gateway.client.get("/v1/admin/tenants") for _ in range(7)]
    assert first.status_code == 200
    assert {one.json()["error"]["code"] for one in others if one.status_code != 200} == {"rate_limited"}
    # A route of another feature.
    usage = [await gateway.client.get("/v1/admin/tenants/acme/usage") for _ in range(7)]
    assert "rate_limited" in {one.json()["error"]["code"] for one in usage if one.status_code != 200}


async def test_the_commands_of_the_page_work(gateway: Gateway) -> None:
    """Each `curl` of docs/ADMIN.md, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", (Path(CHECKOUT) / "docs/ADMIN.md").read_text(), re.DOTALL)
    admin = gateway.client.headers["authorization"].removeprefix("Bearer ")
    variables = {"URL": gateway.url, "ADMIN": admin, "KEY_ID": (await new_key(gateway))["id"]}
    # No persistence runs here, which usage needs.
    script = "set -eu\n" + "\n".join(
        block.replace("curl -s ", "curl -sf --noproxy '*' ") for block in blocks if "usage" not in block
    )
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script, env={"PATH": "/usr/bin:/bin", **variables}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert output.decode().count('"key":"tr_') == 2


async def test_the_commands_show_and_set_limits_and_show_the_audit_log(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tables and as JSON."""
    monkeypatch.setenv("TAILRACE_URL", gateway.url)
    monkeypatch.setenv("TAILRACE_KEY", gateway.client.headers["authorization"].removeprefix("Bearer "))

    async def read_printed(*arguments: str) -> str:
        assert await asyncio.to_thread(main, list(arguments)) == 0
        return capsys.readouterr().out

    assert "requests=600 usd_month=500" in await read_printed("limits", "acme", "--set", "requests=600,usd_month=500")
    (shown,) = msgspec.json.decode(await read_printed("limits", "acme", "--json"))
    assert shown["limits"] == {"requests": 600, "usd_month": 500}
    assert "requests=700 usd_month=500" in await read_printed("limits", "acme", "--set", "requests=700")
    (shown,) = msgspec.json.decode(await read_printed("limits", "acme", "--remove", " usd_month", "--json"))
    assert shown["limits"] == {"requests": 700}
    assert await asyncio.to_thread(main, ["limits", "acme", "--remove", "usd_month"]) == 2
    assert "acme has no limit 'usd_month' of its own: it has requests=700" in capsys.readouterr().err
    rows = [line.split()[:2] for line in (await read_printed("limits")).splitlines()]
    assert rows == [["TENANT", "OWN"], ["acme", "requests=700"], ["operators", "-"]]
    assert "requests=700" not in await read_printed("limits", "acme", "--clear")
    monkeypatch.setattr("tailrace.deploy.cli.audit.PAGE", 2)
    entries = msgspec.json.decode(await read_printed("audit", "--json"))
    assert [entry["action"] for entry in entries] == [*["limits.set"] * 4, "key.create"]
    assert entries == await audit(gateway)
    assert len((await read_printed("audit", "--last", "2")).splitlines()) == 3
    assert await asyncio.to_thread(main, ["limits", "--clear"]) == 2


async def test_limits_that_another_operator_changes_meanwhile_are_not_overwritten(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the read and the write of `tailrace limits --set`."""
    monkeypatch.setenv("TAILRACE_URL", gateway.url)
    monkeypatch.setenv("TAILRACE_KEY", gateway.client.headers["authorization"].removeprefix("Bearer "))
    path, headers = "/v1/admin/tenants/acme/limits", gateway.client.headers
    others = {"limits": {"usd_day": 5}, "expected": {}}

    def change_after_other(own: dict[str, float], args: argparse.Namespace) -> dict[str, float]:
        assert httpx2.put(gateway.url + path, json=others, headers=headers, trust_env=False).status_code == 200
        return apply_change(own, args)

    with monkeypatch.context() as patch:
        patch.setattr(limits, "apply_change", change_after_other)
        assert await asyncio.to_thread(main, ["limits", "acme", "--set", "requests=9"]) == 1
    assert "another request has changed the limits of acme: read them, and try again" in capsys.readouterr().err
    refused = await gateway.client.put(path, json=others)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "limits_changed")
    assert await asyncio.to_thread(main, ["limits", "acme", "--set", "requests=9"]) == 0
    assert (await gateway.client.get(path)).json()["limits"] == {"requests": 9, "usd_day": 5}


async def outdated(url: str) -> Connection:
    """Returns a connection that answers as a gateway of an older version."""
    connection = await Connection.open(as_user(url, GATEWAY), "older-gateway")
    report = msgspec.json.encode({"since": "2026-11-01T00:00:00Z", "readers": []})
    await Rpc(connection).serve_presence(lambda _: False, lambda _: report)
    return connection


@pytest.mark.rule("R145")
async def test_a_tenant_is_private_only_if_all_gateways_know_the_setting(
    gateway: Gateway, own_server: NatsServer, new_gateway: NewGateway
) -> None:
    path = "/v1/admin/tenants/acme"
    await new_gateway(own_server.url)
    older = await outdated(own_server.url)
    try:
        refused = await gateway.client.put(path, json={"users": "private"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "gateways_outdated")
        assert (await gateway.client.get(f"{path}/limits")).json()["users"] == "shared"
        assert (await gateway.client.put(path, json={"users": "shared"})).json()["users"] == "shared"
    finally:
        await older.close()
    private = await gateway.client.put(path, json={"users": "private", "expected": "shared"})
    assert private.json()["users"] == "private"
    refused = await gateway.client.put(path, json={"users": "shared", "expected": "shared"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "users_changed")
    tenants = (await gateway.client.get("/v1/admin/tenants")).json()["data"]
    assert {one["tenant"]: one["users"] for one in tenants} == {"acme": "private", "operators": "shared"}
    newest, *_ = await audit(gateway)
    assert (newest["action"], newest["before"], newest["after"]) == (
        "tenant.set",
        {"users": "private"},
        {"users": "shared"},
    )
    assert "has changed the users of acme" in str(newest["error"])


async def test_the_command_line_sets_the_users_of_a_tenant(
    gateway: Gateway,
) -> None:
    key = gateway.client.headers["authorization"].removeprefix("Bearer ")
    environ = {"TAILRACE_URL": gateway.url, "TAILRACE_KEY": key}
    # In a process of its own: the gateway of the test logs to the same output.
    ran = await run_command("tenants", "set", "acme", "--users", "private", **environ)
    assert ran.out.split() == ["TENANT", "USERS", "LIMITS", "acme", "private", "-"]
    tenants = msgspec.json.decode((await run_command("tenants", "list", "--json", **environ)).out)
    assert [(one["tenant"], one["users"]) for one in tenants] == [("acme", "private"), ("operators", "shared")]
