"""Every setting of every process: an invalid value is refused at startup with a message that says what is valid.

These are the checks of `--check` that need no connection; test_process.py runs the real command.
"""

import importlib
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import msgspec
import pytest

from tailrace.deploy.local.check_environment import SERVICES
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.nats.connection import parse_servers
from tailrace.proto.runtime.settings import env_name, find_mistyped, read, table, type_name
from tests.harness import jwts


def each(*texts: str, says: str = "") -> list[tuple[str, str]]:
    """Returns rows of invalid values whose messages contain the same text."""
    return [(text, says) for text in texts]


HASH = f"{'0' * 63}1"
NATS = each("", "a b", "http://h:1", "nats://h:x", "nats://", "h,,h", says="nats://USER:PASSWORD@HOST:PORT")
LIMITS = [
    ("requests", "NAME=NUMBER"),
    ("money=1", "the limits are requests, burst"),
    ("requests=0", "requests: Expected `int` >= 1"),
    ("requests=1, requests=2", "twice"),
    *each("burst=5", "burst=5, tokens=1000", says="requests"),
    *each("requests=", "requests=many", "requests=1.5", "requests=-1", "requests=0x10", "requests=60;burst=1", "=1"),
    *each("running=5000", "usd_day=-1", "usd_day=NaN", "usd_day=1e400", "tokens=1e99"),
]
HOSTS = each("http://h", "h:80", "a b", "ä", "-1", "h/path", "*", says="names and addresses")
# Settings that accept any text.
ANY = frozenset(
    {
        *(f"TAILRACE_JWT_{kind}_CLAIM" for kind in ("TENANT", "SCOPES", "USER")),
        "TAILRACE_CLAUDE_CODE_TOOLS",
        "TAILRACE_DEMO",
        # The list of models may change.
        "TAILRACE_PAGE_TITLES_MODEL",
        # The file may appear later. Until then, `GET /targets` names it.
        "TAILRACE_METRICS_TARGETS",
    }
)
# For each type: invalid values, and what the message contains.
BY_TYPE = {
    "int": [
        ("", "it is empty; expected a whole number"),
        ("x", "'x'; expected a whole number"),
        ("1.5", "'1.5'; expected a whole number"),
        ("-1", ">= "),
    ],
    "float": [("", "it is empty; expected a number"), *each("x", "nan", "inf", says="a number"), ("-1", "0")],
    "bool": each("", "maybe", says="true or false"),
    "bool or loopback": each("", "maybe", says="true or false or one of loopback"),
}
BY_NAME: dict[str, list[tuple[str, str]]] = {
    "TAILRACE_NATS_URL": NATS,
    "TAILRACE_EXPECTED": each(
        *(
            "3",
            "generator=2",
            "gateway",
            "gateway=",
            "gateway=-1",
            "gateway=2,",
            "gateway=2;generators=3",
            "gateway=1000",
        ),
        says="gateway=2,generators=3,persistence=1",
    ),
    "TAILRACE_METRICS_PORT": [("65536", "<= 65535")],
    "TAILRACE_METRICS_HOST": each("", "metrics.example", "127.0.0.1:9100", says="IP address"),
    "TAILRACE_PORT": [("65536", "<= 65535")],
    "TAILRACE_LISTEN_FD": [("9999", "not an inherited socket"), ("9" * 20, "<= 2147483647")],
    "TAILRACE_HOST": each("", "a b", "256.0.0.1", "http://localhost", "192.0.2.1", "a..b", says="127.0.0.1"),
    # A key that is ignored silently could leave the gateway open.
    "TAILRACE_API_KEYS": [
        ("acme:secret", "pair 1 is not TENANT:SHA256"),
        (f"acme:{HASH},other:secret", "pair 2 is not TENANT:SHA256"),
        ("acme:secret", "printf %s KEY | sha256sum"),
        (f"A:{HASH}", "a-z 0-9"),
        *each("secret", f"acme:{HASH[:-1]}", f"acme:{'A' * 64}", f"*:{HASH}", f"{'x' * 65}:{HASH}"),
        *each(f"acme:{HASH};other:{HASH[::-1]}", f"acme:{HASH},other:{HASH}"),
    ],
    "TAILRACE_JWT_SECRET": [("short", "32 bytes")],
    "TAILRACE_JWT_KEYS": each("/nowhere", "http://[::1", "file:///etc/passwd", "ftp://h/", "https://", says="URL"),
    "TAILRACE_JWT_ISSUER": [("https://issuer.example", "TAILRACE_JWT_SECRET or TAILRACE_JWT_KEYS")],
    "TAILRACE_JWT_AUDIENCE": [("authenticated", "TAILRACE_JWT_SECRET or TAILRACE_JWT_KEYS")],
    # They would match no request, or such an origin all of them.
    "TAILRACE_HOSTS": each(
        *("https://h", "h:80", "box.example/x", "*.example", "[::1]"), says="without scheme and port"
    ),
    "TAILRACE_ORIGINS": each(
        *("*", "null", "app.example", "https://ok.example,app.example", "https://app.example/", "https://*.example"),
        *("https://app.example:443", "http://app.example:80", "https://user@app.example", "ftp://app.example"),
        *("https://bücher.example", "https://app.example;https://other.example"),
        says="https://app.example",
    ),
    "TAILRACE_PROXIES": each("proxy.example", "10.0.0.5/8", "*", says="neither an address"),
    "TAILRACE_FULL_AT": [("1.5", "<= 1"), ("0", "> 0")],
    "TAILRACE_DISK": [("/nowhere", "is not a directory")],
    "TAILRACE_FIRST_KEY_FILE": [("/nowhere/first-key", "/nowhere is not a directory")],
    "TAILRACE_LIMITS_KEY": LIMITS,
    "TAILRACE_LIMITS_TENANT": LIMITS,
    "TAILRACE_SOFT_LIMITS": each("0", "7", "105", "80%", "1.5", says="from 5 to 100 in steps of 5"),
    "TAILRACE_PROMPTS": [("/nowhere", "does not exist")],
    "TAILRACE_CACHE": each("9m", "", says="one of auto, 5m, 1h, off"),
    "TAILRACE_LOG_FORMAT": [("xml", "one of json, console, colour")],
    "TAILRACE_LOG_STREAMS": [("warning", "one of debug, info")],
    "TAILRACE_LOG_LEVEL": [("loud", "one of debug, info, warning, error")],
    # Claude's own names keep their meaning, and each name has one.
    "TAILRACE_MODEL_ALIASES": [
        ("gpt-4", "NAME=MODEL"),
        ("gpt-4=none", "one of claude"),
        *each("gpt-4=", "=claude-sonnet-5-5", "gpt-4=claude-sonnet-5-5,gpt-4=claude-haiku-5-5"),
        *each("claude-sonnet-5-5=claude-haiku-5-5", "claude-sonnet-4-5-20250929=claude-haiku-5-5"),
    ],
    "TAILRACE_MODELS_FILE": each("/nowhere", __file__, says="is not a JSON list of models"),
    "TAILRACE_WEBHOOK_PRIVATE_HOSTS": HOSTS,
    "TAILRACE_OPS_TARGETS": each(
        *("127.0.0.1:9100", "model=h:1", "gateway=h", "gateway=h:65536"), says="PART=HOST:PORT"
    ),
    "TAILRACE_PROMETHEUS_URL": each("prometheus:9090", "file:///etc", "http://", says="http://prometheus:9090"),
    "TAILRACE_RUNBOOK_URL": each("RUNBOOK.md", "javascript:alert(1)", says="https://wiki.example"),
    "TAILRACE_METRICS_TENANTS": [("acme, B", "'B' is not"), (",".join(map(str, range(101))), "at most 100")],
    "TAILRACE_GENERATOR": [("", ">= 1"), ("x" * 65, "<= 64")],
    "TAILRACE_BACKENDS": [
        ("none", "one of claude"),
        *each("", ";", "claude,", "claude, claude", "claude-opus-5-5 = bedrock", says="each named once"),
        *each("claude; claude-opus-5-5", "claude; claude-opus-5-5 =", says="each named once"),
        ("claude; gpt = litellm", "MODEL = BACKEND"),
        ("claude; claude-opus-5-5 = bedrock; claude-opus-5-5-latest = vertex", "MODEL = BACKEND"),
    ],
    "ANTHROPIC_API_KEY": [("", "give a key"), *each("a b", "ä", says="visible ASCII"), ("'a'", "quotes")],
    "CLAUDE_CODE_OAUTH_TOKEN": [("a b", "visible ASCII"), ('"a"', "quotes")],
    "ANTHROPIC_BASE_URL": [
        *each("", "api.anthropic.com", "http://[::1", "http://h:x", "https://ops:secret@h", says="https://HOST"),
        *each("https://h/v1", "https://h/anthropic/v1/", says="remove /v1"),
    ],
    "TAILRACE_CLAUDE_CODE_BINARY": [("/nowhere/claude", "/nowhere/claude is not an executable file")],
    "TAILRACE_CLAUDE_CODE_ROOT": [(__file__, "expected a folder")],
    "TAILRACE_DATABASE": each("", "/", says="a file"),
    # So long ago, there is no date.
    "TAILRACE_HISTORY_DAYS": [("999999", "<= 36500")],
    **{f"TAILRACE_{name}_S": [("1e12", "<= 3153600000")] for name in ("SESSION_IDLE", "UNSTORED", "WEBHOOK_GIVE_UP")},
    "TAILRACE_WEBHOOK_KEY": [("short", "32 characters")],
    **{
        name: [
            ("https://h", "TENANT=URL"),
            ("acme=http://h", "https://"),
            *each("acme=http://10.0.0.1/", "Acme=https://h/"),
        ]
        for name in ("TAILRACE_WEBHOOK_URLS", "TAILRACE_BUDGET_WEBHOOK_URLS")
    },
}
# Other settings without which a setting is not used.
BESIDES = {
    "CLAUDE_CODE_OAUTH_TOKEN": {"TAILRACE_BACKENDS": "claude_code"},
    "TAILRACE_CLAUDE_CODE_BINARY": {"TAILRACE_BACKENDS": "claude_code"},
    "TAILRACE_CLAUDE_CODE_ROOT": {"TAILRACE_BACKENDS": "claude_code", "TAILRACE_CLAUDE_CODE_BINARY": "/bin/true"},
}


class Wrong(NamedTuple):
    role: str
    name: str
    text: str
    says: str


async def check_settings(role: str, environ: dict[str, str]) -> Any:
    """Reads and checks the settings as `--check` does before it connects."""
    settings: Any = read(dict(SERVICES)[role], environ)
    parse_servers(settings.nats_url)
    await importlib.import_module(f"tailrace.{role}.__main__").preflight(settings)
    return settings


def rows() -> list[Wrong]:
    wrong = []
    for role, kind in SERVICES:
        for field, hint in get_type_hints(kind).items():
            name = env_name(field)
            of_type = BY_TYPE.get(type_name(hint), [])
            wrong += [Wrong(role, name, text, says) for text, says in [*of_type, *BY_NAME.get(name, [])]]
    return wrong


def test_every_setting_has_an_invalid_value_here() -> None:
    """A new setting needs a row here, or an entry in ANY."""
    named = {env_name(field) for _, kind in SERVICES for field in kind.__struct_fields__}
    assert named == {row.name for row in rows()} | ANY
    assert not ANY & {row.name for row in rows()}


@pytest.mark.parametrize("wrong", rows(), ids=lambda row: f"{row.role}-{row.name}={row.text}")
async def test_an_invalid_setting_is_refused_with_its_name_and_valid_values(wrong: Wrong, tmp_path: Path) -> None:
    """One line, without internal paths and passwords."""
    environ = {"ANTHROPIC_API_KEY": "sk-test", "TAILRACE_DATABASE": str(tmp_path / "x.db")}
    with pytest.raises(SettingsInvalid) as refused:
        await check_settings(wrong.role, environ | BESIDES.get(wrong.name, {}) | {wrong.name: wrong.text})
    message = str(refused.value)
    assert message.startswith((f"{wrong.name}: ", f"{wrong.name} "))
    assert wrong.says in message
    assert "\n" not in message
    assert "$." not in message
    assert "secret" not in message or "secret" not in wrong.text


@pytest.mark.parametrize("kind", dict(SERVICES).values(), ids=dict(SERVICES))
def test_every_setting_has_a_default_and_a_description(kind: type[msgspec.Struct]) -> None:
    """`python -m … --env` and `tailrace explain settings` have them."""
    kind()
    assert [name for name, _, _, meaning in table(kind) if not meaning] == []


async def test_valid_settings_are_accepted(tmp_path: Path) -> None:
    """Shows that the rows above fail because of the named setting."""
    (tmp_path / "prompts").mkdir()
    good = {
        "TAILRACE_NATS_URL": "nats://TOKEN@nats-1.internal:4222, tls://[::1]:4222, 127.0.0.1:4222, nats",
        "TAILRACE_HOST": "localhost",
        "TAILRACE_HOSTS": "app.example, my_container",
        "TAILRACE_ORIGINS": "https://app.example:8443",
        "TAILRACE_LIMITS_KEY": "requests=60, burst=10",
        "TAILRACE_PROMPTS": str(tmp_path / "prompts"),
        "TAILRACE_CACHE": "5m",
        # A socket in a temporary folder, which may have been deleted when the gateway is started again.
        "TAILRACE_DEMO": "/nowhere",
        "TAILRACE_WEBHOOK_PRIVATE_HOSTS": "hooks, hooks.internal., 10.0.0.7, [fd00::1], ::1",
        "TAILRACE_WEBHOOK_URLS": "acme=http://hooks:8080/x",
        "TAILRACE_DATABASE": str(tmp_path / "x.db"),
        "ANTHROPIC_API_KEY": "sk-test",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:8001/anthropic",
        **{f"TAILRACE_{name.upper()}": text for name, text in jwts.settings().items()},
    }
    for role, _ in SERVICES:
        settings = await check_settings(role, good)
        assert len(parse_servers(settings.nats_url)) == 4


def test_a_mistyped_setting_is_found_by_its_process_only() -> None:
    """Not taken for typing errors: the settings of other processes, and what belongs to other programs."""
    known = {env_name(field) for _, kind in SERVICES for field in kind.__struct_fields__}
    valid = dict.fromkeys(known | {"TAILRACE_PORT_80_TCP", "PATH"}, "")
    assert not any(find_mistyped(kind, valid) for _, kind in SERVICES)
    mistyped = {"TAILRACE_JWT_ISSUERS": "", "TAILRACE_TENANT_SHARES": "", "TAILRACE_ANTHROPIC_API_KEY": ""}
    assert [find_mistyped(kind, mistyped) for _, kind in SERVICES] == [
        {"TAILRACE_JWT_ISSUERS": "TAILRACE_JWT_ISSUER"},
        {"TAILRACE_ANTHROPIC_API_KEY": "ANTHROPIC_API_KEY", "TAILRACE_TENANT_SHARES": "TAILRACE_TENANT_SHARE"},
        {},
    ]
