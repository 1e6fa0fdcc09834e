#!/usr/bin/env bash
# anthropic (Python) 2 sends the API key as `Authorization: Bearer`, without `x-api-key`, and a new `anthropic-version`.
#
# Guessed:  `x-api-key` and `anthropic-version: 2023-06-01`, as older versions send.
# Version:  anthropic 2.14.0.
# Seen:     headers of a request of `Anthropic(api_key="k")`:
#               authorization:     Bearer k
#               x-api-key:         None
#               anthropic-version: 2026-10-21
# Meets:    proxies and gateways that look for the key in `x-api-key`: after the client's upgrade they answer 401. Accept both.
# Tailrace: Accepts the key in either header.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' <<'PYTHON'
import anthropic
import messages_api

received = {}


def answer(_, headers):
    received.update(headers)
    return messages_api.json_reply(200, messages_api.MESSAGE)


client = anthropic.Anthropic(api_key="k", base_url=messages_api.serve(answer))
client.messages.create(model="m", max_tokens=9, messages=messages_api.MESSAGES)
seen = {name: received.get(name) for name in ("authorization", "x-api-key", "anthropic-version")}
for name, value in seen.items():
    print(f"{name}:".ljust(18), value)
assert list(seen.values()) == ["Bearer k", None, "2026-10-21"], seen
PYTHON
