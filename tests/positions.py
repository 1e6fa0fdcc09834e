"""Compares tests/positions.csv with the values of all routes that name a place or a thing: `python -m tests.positions`.

The values come from the OpenAPI document: parameters of the query, headers, and fields of bodies at any depth. Ids in
the path have tests/private_users.csv. Operators' routes are left out: they read all tenants. Exit status 1 if a value
has no row, a row has no value, or a name is new: add it to THINGS, and a row for each of its routes, or to PLAIN.
"""

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tailrace.features.gateway import ROUTES
from tailrace.proto.version import VERSION
from tools.openapi.document import build_document

TABLE = Path(__file__).parent / "positions.csv"
Json = Mapping[str, Any]
Value = tuple[str, str]
"""A route and the name of a value, such as `("GET /v1/turns", "after")`."""

# The names of values that name a place or a thing. A new name needs rows that say what it is compared with.
THINGS = frozenset(
    [
        *("after", "after_id", "before_id", "offset", "startIndex", "starting_after", "Last-Event-ID"),
        *("session", "session_id", "X-Session-ID", "conversation", "threadId", "id", "messageId"),
        *("turn", "parent", "previous_response_id", "runId", "parentRunId", "container_id"),
        *("call_id", "tool_call_id", "toolCallId", "interruptId", "ticket"),
        *("project", "project_id", "X-Project-ID", "user", "key", "prompt"),
        *("file_id", "input_file_id", "Idempotency-Key", "idempotency_key"),
    ]
)
# The names of texts, numbers and labels, which name nothing that is stored.
PLAIN = frozenset(
    [
        *("access_programs", "annotations", "api-version", "api_version", "arguments", "audio", "background_options"),
        *("beta", "by", "city", "clear_at", "client_metadata", "client_version", "confirm", "content", "context"),
        *("context_management", "country", "custom_id", "data", "description", "detail", "enabled", "encryptedValue"),
        *("encrypted_content", "error", "errorText", "exclude", "expires_after[anchor]", "expires_after[seconds]"),
        *("expires_in_seconds", "file", "file_data", "file_url", "filename", "frequency_penalty", "from"),
        *("function_call", "functions", "image", "image_url", "include", "include_obfuscation", "index", "input"),
        *("input_audio",),
        *("instructions", "life_s", "lifecycle[]", "limit", "logit_bias", "logprobs", "max_completion_tokens"),
        *("max_output_tokens", "max_seconds", "max_tokens", "max_tool_calls", "mediaType", "message", "min_age_s"),
        *("modalities", "mode", "model", "moderation", "n", "name", "on_disconnect", "output", "output_expires_after"),
        *("page", "parallel", "parameters", "parsed", "parsed_arguments", "path", "payload", "per_page", "prediction"),
        *("presence_penalty", "prompt_cache_breakpoint", "prompt_cache_key", "prompt_cache_options"),
        *("prompt_cache_retention", "protocolVersion", "purpose", "q", "reason", "reasoning_content", "refusal"),
        *("region", "replay", "result", "safety_identifier", "search_context_size", "seed", "service_tier", "state"),
        *("stop", "store", "stream_options", "system", "system_prompt", "text", "timezone", "title", "to", "toolName"),
        *("top_k", "top_logprobs", "truncation", "type", "url", "value", "verbosity", "wait", "webhook"),
    ]
)
# Headers and cookies that the document leaves out, and names inside of blocks whose schema is Anthropic's.
FILE, RESULT = "content[].source.file_id", "content[].tool_use_id"
WITH_BLOCKS = ("/v1/turns", "/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches", "/v1/turn-batches")
UNDOCUMENTED = {
    ("POST /v1/sessions/{session}/calls/{call}", "{call}"),
    ("POST /v1/turns", "prompt.name"),
    ("POST /v1/messages", "X-Claude-Code-Session-Id"),
    ("POST /v1/messages", "X-Claude-Code-Agent-Id"),
    ("POST /chat", "Cookie"),
    ("POST /v1/responses", "tools[].container"),
    ("POST /v1/responses", "X-Stainless-Retry-Count"),
    ("POST /v1/batches", "lines of the file"),
    *((f"POST {path}", FILE) for path in (*WITH_BLOCKS, "/v1/turns/{turn}/steer")),
    *((f"POST {path}", RESULT) for path in ("/v1/turns", "/v1/turns/{turn}/steer")),
    ("POST /v1/sessions/{session}/calls/{call}", "result[].source.file_id"),
}
NOTHING, ALL, OWN = "nothing", "everything of the tenant", "only its own"


class Row(NamedTuple):
    """One value of one route, and what it opens."""

    topic: str
    method: str
    path: str
    value: str
    held_against: str
    session: str
    """The part that it opens of another session, response or batch of the tenant: NOTHING or ALL."""
    user: str
    """The part that it opens of another private user."""
    tenant: str
    """The part that it opens of another tenant."""
    may_use: str
    """The comparison that an app with one key must make before it passes the request on."""

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"


def read_table() -> list[Row]:
    """Returns the rows of tests/positions.csv."""
    with TABLE.open(newline="") as file:
        _, *lines = csv.reader(file)
    found = []
    for topic, route, value, *results in lines:
        method, path = route.strip("`").split(" ")
        found.append(Row(topic, method, path, value.strip("`"), *results))
    return found


def documented_values(document: Json) -> Iterator[tuple[str, str, bool]]:
    """Yields route, name, and whether the value may be a text or a number, of all values but those of the path."""
    skipped = {(one.method, one.path) for one in ROUTES if one.need in ("admin", "operate", "public")}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if (method.upper(), path) in skipped:
                continue
            route = f"{method.upper()} {path}"
            for one in operation.get("parameters", ()):
                if one["in"] != "path":
                    yield route, one["name"], has_name(one["schema"], document)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                for name, schema in fields_of(content["schema"], document, frozenset()):
                    yield route, name, has_name(schema, document)


def fields_of(schema: Json, document: Json, seen: frozenset[str]) -> Iterator[tuple[str, Json]]:
    """Yields the fields of a schema at any depth, with their schemas."""
    if (reference := schema.get("$ref")) is not None:
        if reference in seen:
            return
        seen |= {reference}
    schema = resolve(schema, document)
    for name, field in schema.get("properties", {}).items():
        yield name, field
        yield from fields_of(field, document, seen)
    inner = [schema.get("items"), schema.get("additionalProperties"), *alternatives(schema)]
    for one in inner:
        if isinstance(one, dict):
            yield from fields_of(one, document, seen)


def has_name(schema: Json, document: Json) -> bool:
    """Returns whether a value of this schema may be a free text or an integer: no flag, choice, or mere container."""
    schema = resolve(schema, document)
    found = alternatives(schema)
    if "enum" in schema or "const" in schema:
        return False
    kinds = schema.get("type", "any" if not found else "")
    named = {"string", "integer", "any"}.intersection(kinds if isinstance(kinds, list) else [kinds])
    return bool(named) or any(has_name(one, document) for one in found)


def alternatives(schema: Json) -> list[Json]:
    return [one for kind in ("anyOf", "oneOf", "allOf") for one in schema.get(kind, ())]


def resolve(schema: Json, document: Json) -> Json:
    """Returns the schema to which a reference leads."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def find_problems(rows: Iterable[Row], document: Json) -> list[str]:
    """Returns what is wrong with the table, each with what to do."""
    found = set(documented_values(document))
    unknown = sorted({name for _, name, is_named in found if is_named} - THINGS - PLAIN)
    needed = UNDOCUMENTED | {(route, name) for route, name, is_named in found if is_named and name in THINGS}
    listed = [(row.route, row.value) for row in rows]
    return [
        *(f"`{name}` is new: add it to THINGS or PLAIN in tests/positions.py" for name in unknown),
        *(f"{route}: `{name}` has no row in tests/positions.csv" for route, name in sorted(needed - set(listed))),
        *(f"{route}: no `{name}`: remove its row" for route, name in sorted(set(listed) - needed)),
        *(
            f"{route}: `{name}` has two rows"
            for route, name in sorted({one for one in listed if listed.count(one) > 1})
        ),
        *(f"{row.route}: `{row.value}` says not what `may_use` compares" for row in rows if is_incomplete(row)),
    ]


def is_incomplete(row: Row) -> bool:
    """Returns whether the credential is the only bound, and the row does not say what an app has to compare."""
    return row.session == ALL and not row.may_use


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.positions", description=__doc__).parse_args()
    problems = find_problems(read_table(), build_document(ROUTES, VERSION))
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
