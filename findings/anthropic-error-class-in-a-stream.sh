#!/usr/bin/env bash
# anthropic (Python) raises a typed error for a refused request, and only the general class for the same error in a stream.
#
# Guessed:  an `error` event with `details.error_code` raises the class that the same body raises with its HTTP status.
# Version:  anthropic 2.14.0.
# Seen:     the class is chosen by (HTTP status, error code), and the status of a stream is always 200:
#               before the stream: ImageDimensionsTooLargeError 400 image_dimensions_too_large
#               in the stream:     APIStatusError 200 image_dimensions_too_large
# Meets:    programs that catch a typed error around a stream. They must look at `error_code`.
# Tailrace: Sends `error.details` in a stream and in a refusal, so a client finds the code in both.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' <<'PYTHON'
import anthropic
import messages_api

DETAILS = {"error_code": "image_dimensions_too_large"}
BODY = {"type": "error", "error": {"type": "invalid_request_error", "message": "too large", "details": DETAILS}}


def answer(request, _):
    if request["model"] == "refused":
        return messages_api.json_reply(400, BODY)
    return messages_api.stream_reply([messages_api.START, BODY])


client = anthropic.Anthropic(api_key="k", base_url=messages_api.serve(answer), max_retries=0)
seen = []
for model in ("refused", "broken"):
    try:
        for _ in client.messages.create(model=model, max_tokens=1, messages=messages_api.MESSAGES, stream=True):
            pass
    except anthropic.APIStatusError as error:
        seen.append(f"{type(error).__name__} {error.status_code} {error.error_code}")
print("before the stream:", seen[0])
print("in the stream:    ", seen[1])
assert seen == [
    "ImageDimensionsTooLargeError 400 image_dimensions_too_large",
    "APIStatusError 200 image_dimensions_too_large",
], seen
PYTHON
