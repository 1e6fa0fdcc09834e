#!/usr/bin/env bash
# anthropic (Python) waits as long as `retry-after` asks, up to 49 days, before its own retry.
#
# Guessed:  a `retry-after` above a minute is ignored, and the SDK waits as without one, at most 8 s; or the wait counts
#           against the client's timeout.
# Version:  anthropic 2.14.0.
# Seen:     time.sleep, replaced, with default settings and the client's timeout at 5 s:
#               retry-after: 86400 -> sleeps 86400 s
#               retry-after: 9999999 -> sleeps 4294967 s
# Meets:    services whose workers call an API that is over its limit: a worker is lost until tomorrow. Set max_retries=0, and
#           retry in one place with a limit of your own.
# Tailrace: Sets `max_retries=0`, and repeats calls in one place, with a limit.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' <<'PYTHON'
import time

import anthropic
import messages_api

ASKED = ["86400", "9999999"]
waiting = []


def answer(*_):
    return 429, {"retry-after": ASKED[len(waiting)]}, b""


class Slept(Exception):
    pass


def sleep(seconds):
    waiting.append(round(seconds))
    raise Slept


client = anthropic.Anthropic(api_key="k", base_url=messages_api.serve(answer), timeout=5)
time.sleep = sleep
for asked in ASKED:
    try:
        client.messages.create(model="m", max_tokens=9, messages=messages_api.MESSAGES)
    except Slept:
        print(f"retry-after: {asked} -> sleeps {waiting[-1]} s")
assert waiting == [86400, 4294967], waiting
PYTHON
