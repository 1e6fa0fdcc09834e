#!/usr/bin/env bash
# anthropic (Python) adds up the deltas of a text, and keeps only the last one of a signature or a compaction.
#
# Guessed:  the final message of a stream has all its deltas, joined, whatever the kind of the block.
# Version:  anthropic 2.14.0.
# Seen:     a stream with two deltas for each block:
#               text:       onetwo
#               thinking:   onetwo
#               signature:  two
#               compaction: two
# Meets:    gateways and proxies that cut or join deltas: a signature in two events becomes an invalid one, and the next request
#           with this message is refused. The API sends each of these in one delta; keep it in one.
# Tailrace: Stores and sends a signature and a compaction as one delta.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' <<'PYTHON'
import anthropic
import messages_api

BLOCKS = [
    ({"type": "text", "text": ""}, [("text_delta", "text")]),
    ({"type": "thinking", "thinking": "", "signature": ""}, [("thinking_delta", "thinking"), ("signature_delta", "signature")]),
    ({"type": "compaction", "content": ""}, [("compaction_delta", "content")]),
]
EVENTS = [messages_api.START]
for index, (block, fields) in enumerate(BLOCKS):
    EVENTS.append({"type": "content_block_start", "index": index, "content_block": block})
    for kind, field in fields:
        EVENTS += [{"type": "content_block_delta", "index": index, "delta": {"type": kind, field: part}} for part in ("one", "two")]
    EVENTS.append({"type": "content_block_stop", "index": index})
EVENTS += [{"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 9}},
           {"type": "message_stop"}]
client = anthropic.Anthropic(api_key="k", base_url=messages_api.serve(lambda *_: messages_api.stream_reply(EVENTS)), max_retries=0)
with client.beta.messages.stream(model="m", max_tokens=9, messages=messages_api.MESSAGES) as stream:
    text, thinking, compaction = stream.get_final_message().content
seen = {"text": text.text, "thinking": thinking.thinking, "signature": thinking.signature, "compaction": compaction.content}
for name, value in seen.items():
    print(f"{name}:".ljust(11), value)
assert list(seen.values()) == ["onetwo", "onetwo", "two", "two"], seen
PYTHON
