"""Checks of the environment of `up` before the start."""

import pytest

from tailrace.deploy.local.check_environment import check
from tailrace.proto.errors import SettingsInvalid


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("TAILRACE_GRACE", " (did you mean TAILRACE_GRACE_S?)"),
        ("TAILRACE_CONCURENCY", " (did you mean TAILRACE_CONCURRENCY?)"),
        ("TAILRACE_APIKEYS", " (did you mean TAILRACE_API_KEYS?)"),
        ("TAILRACE_ANTHROPIC_API_KEY", " (did you mean ANTHROPIC_API_KEY?)"),
        ("TAILRACE_XYZZY", ""),
        ("TAILRACE_", ""),
    ],
)
async def test_an_unknown_setting_is_refused_with_the_most_similar_name(name: str, nearest: str) -> None:
    """Its value is not in the message, because it may be a key."""
    with pytest.raises(SettingsInvalid) as refused:
        await check({name: "s3cret"})
    assert str(refused.value) == f"{name} is not a setting{nearest}; `tailrace explain settings` lists all"


@pytest.mark.parametrize("name", ["TAILRACE_NATS_URL", "TAILRACE_DATABASE"])
async def test_up_refuses_a_setting_that_it_chooses_itself(name: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"{name} is set, but `tailrace up`"):
        await check({name: "nats://127.0.0.1:4222"})


async def test_variables_of_other_programs_and_of_client_commands_are_ignored() -> None:
    await check({"PATH": "x", "ANTHROPIC_LOG": "debug", "TAIL": "1", "TAILRACE_GRACE_S": "3"})
    await check({"TAILRACE_URL": "https://tailrace.example", "TAILRACE_KEY": "s3cret"})


async def test_a_setting_of_an_earlier_version_is_not_refused() -> None:
    """The processes log a warning (test_process.py)."""
    await check({"TAILRACE_HEDGE_AFTER_S": "2"})
