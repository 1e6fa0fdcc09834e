"""Proxies in the generator's environment."""

import pytest

from tailrace.generators.settings import Settings, require_sound
from tailrace.proto.errors import SettingsInvalid

SOUND = Settings(anthropic_api_key="key", anthropic_base_url="https://api.example")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("name", ["ALL_PROXY", "HTTPS_PROXY", "all_proxy"])
def test_a_socks_proxy_is_refused_at_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "socks5://127.0.0.1:1080")
    with pytest.raises(SettingsInvalid, match="HTTPS_PROXY to an http:// proxy"):
        require_sound(SOUND)


@pytest.mark.parametrize(
    ("name", "value"), [("NO_PROXY", "api.example"), ("HTTPS_PROXY", "http://127.0.0.1:3128"), ("NO_PROXY", "*")]
)
def test_a_socks_proxy_that_is_not_used_for_the_model_is_ignored(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setenv(name, value)
    require_sound(SOUND)
