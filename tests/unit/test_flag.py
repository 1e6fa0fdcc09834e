"""Flag: a flag that is set once, and what is called then."""

import asyncio

from tailrace.proto.runtime.flag import Flag


def test_calls_are_made_once_when_the_flag_is_set() -> None:
    flag, calls = Flag(), list[str]()
    flag.add_callback(lambda: calls.append("before"))
    assert not flag.is_set()
    assert not calls
    flag.set()
    flag.set()
    assert flag.is_set()
    assert calls == ["before"]
    flag.add_callback(lambda: calls.append("after"))
    assert calls == ["before", "after"]


def test_a_call_that_was_forgotten_is_not_made() -> None:
    flag, calls = Flag(), list[str]()

    def call() -> None:
        calls.append("called")

    flag.add_callback(call)
    flag.remove_callback(call)
    flag.remove_callback(call)
    flag.set()
    assert not calls


async def test_every_waiter_returns_and_one_that_was_cancelled_is_forgotten() -> None:
    flag = Flag()
    waiting = [asyncio.create_task(flag.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    flag.set()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting[1:], flag.wait()) == [True] * 3
