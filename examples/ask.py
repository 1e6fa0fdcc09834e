"""Asks a question with the Python client, and prints the answer: `python ask.py "Why is the sky blue?"`.

It needs `pip install /path/to/checkout`, and a gateway at TAILRACE_URL (default: http://127.0.0.1:8000).
"""

import sys

from tailrace import Client, TailraceError

if len(sys.argv) != 2:
    raise SystemExit(__doc__)
try:
    with Client() as client, client.ask(sys.argv[1]) as answer:
        for event in answer:
            if event.type == "delta":
                print(event.text, end="", flush=True)
            if event.type == "reset":
                print("\nThe answer starts again:")
    end = answer.done()
except TailraceError as error:  # refused, or the connection is lost for good
    raise SystemExit(str(error)) from None
print(f"\n{end.outcome}: {end.usage.output_tokens} tokens, ${end.cost_usd}", file=sys.stderr)
