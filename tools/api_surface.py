"""Compares the types of the installed `anthropic` SDK with the verdicts in docs/claude_api.toml.

A verdict says what Tailrace does with a type of the Messages API. Exit status 1 if a type has no verdict, or a verdict
has no type: a new version of the SDK needs decisions. docs/CLAUDE_API.md is the same table for users.
"""

import argparse
import inspect
import re
import sys
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import anthropic
import msgspec
from anthropic import types as plain
from anthropic.resources.beta.messages import messages as beta_messages
from anthropic.resources.messages import messages
from anthropic.types import beta, message_create_params, raw_message_delta_event, shared
from anthropic.types.beta import beta_raw_message_delta_event
from anthropic.types.beta import message_create_params as beta_message_create_params

TABLE = Path(__file__).parent.parent / "docs" / "claude_api.toml"
HEADER = re.compile(r'"((?:anthropic|x-stainless)-[a-z-]+|x-api-key|request-id)"', re.IGNORECASE)
# The modules that set or read headers. Those of the client are private.
SENDERS = (sys.modules["anthropic._client"], sys.modules["anthropic._base_client"], messages, beta_messages)
# Parameters of the SDK's methods that are headers of the request.
HEADER_PARAMETERS = ("betas", "user_profile_id", "workspace_id")
# The SDK skips the one, raises the other, and has a type of neither.
EVENTS_WITHOUT_TYPE = ("ping", "error")

Verdict = Literal["carried", "used", "passed", "replaced", "refused"]
VERDICTS: dict[Verdict, str] = {
    "carried": "readers get it as the API sent it: live, replayed, from the database, as JSON and as history",
    "used": "carried or passed, and Tailrace acts on it",
    "passed": "sent to the API as the client sent it",
    "replaced": "Tailrace has its own",
    "refused": "status 400, with the advice of the last column",
}
# The columns of the page, by field of a row.
COLUMNS = {
    "verdict": "verdict",
    "killed": "when the generator is killed",
    "tailrace": "`tailrace`",
    "chat": "Chat Completions",
    "responses": "Responses",
    "ui": "AI SDK",
    "agents": "AG-UI",
    "note": "note",
}
Names = Mapping[str, frozenset[str]]


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The verdict on one type. An empty column means that the dialect does not show it."""

    verdict: Verdict
    killed: str = ""
    """What becomes of it when the generator is killed."""
    tailrace: str = ""
    chat: str = ""
    responses: str = ""
    ui: str = ""
    agents: str = ""
    note: str = ""
    """The reason of the verdict; for a refused type, also what to do instead."""


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Types that have the same place in the API."""

    title: str
    about: str
    rows: dict[str, Row]


def read_table(path: Path = TABLE) -> dict[str, Group]:
    """Returns the groups of the table. Raises msgspec.ValidationError."""
    return msgspec.convert(tomllib.loads(path.read_text()), dict[str, Group])


@cache
def sdk_names() -> Names:
    """Returns the names of the SDK's types, by group of the table."""
    events = (plain.RawMessageStreamEvent, beta.BetaRawMessageStreamEvent)
    blocks = (plain.ContentBlock, beta.BetaContentBlock)
    request_blocks = (plain.ContentBlockParam, beta.BetaContentBlockParam)
    tools = (plain.ToolUnionParam, beta.BetaToolUnionParam)
    bodies = (message_create_params.MessageCreateParamsBase, beta_message_create_params.MessageCreateParamsBase)
    whole = (plain.Message, beta.BetaMessage)
    deltas = (plain.RawMessageDeltaEvent, beta.BetaRawMessageDeltaEvent)
    ends = (raw_message_delta_event.Delta, beta_raw_message_delta_event.Delta)
    usages = (plain.Usage, plain.MessageDeltaUsage, beta.BetaUsage, beta.BetaMessageDeltaUsage)
    turns = (plain.MessageParam, beta.BetaMessageParam)
    found = {
        "stream_events": tags(events) | frozenset(EVENTS_WITHOUT_TYPE),
        "answer_blocks": tags(blocks),
        "deltas": tags((plain.RawContentBlockDelta, beta.BetaRawContentBlockDelta)),
        "stop_reasons": literals((plain.StopReason, beta.BetaStopReason)),
        "message_fields": fields(whole) | fields(ends) | fields(deltas) - {"delta"},
        "usage_fields": paths(usages),
        "iterations": tags((beta.BetaIterationsUsage,)),
        "server_tools": field_literals("name", blocks),
        "citations": tags((plain.TextCitation, beta.BetaTextCitation)),
        "tool_error_codes": field_literals("error_code", reachable(blocks)),
        "error_types": literals((shared.ErrorType,)) | tags((shared.ErrorObject,)),
        "request_fields": fields(bodies) - frozenset(HEADER_PARAMETERS) | {"stream"},
        "message_params": fields(turns) | field_literals("role", turns),
        "request_blocks": tags(request_blocks),
        "tools": tags(tools),
        "headers": header_names(*SENDERS),
    }
    rest = tags(reachable(events))
    found["answer_parts"] = rest - frozenset().union(*found.values()) - {"message"}
    found["request_parts"] = tags(reachable(bodies)) - found["request_blocks"] - found["tools"] - rest
    return found


# Groups without types: rules that the vendor's pages say, with the sessions of tests/conformance/rules.
WITHOUT_TYPES = ("request_rules",)


def compare(table: Mapping[str, Group], names: Names) -> list[str]:
    """Returns one line for each type without a verdict, and for each verdict without a type."""
    groups = sorted({*table, *names}.difference(WITHOUT_TYPES))
    rows = {name: set(table[name].rows) if name in table else set() for name in groups}
    found = {name: set(names.get(name, ())) for name in groups}
    missing = [f"{group}.{name}: no verdict" for group in groups for name in sorted(found[group] - rows[group])]
    stale = [
        f"{group}.{name}: the SDK has no such type" for group in groups for name in sorted(rows[group] - found[group])
    ]
    return missing + stale


def unwrap(annotation: Any) -> Any:
    """Returns the type inside of Annotated, Required and lists."""
    while True:
        origin = get_origin(annotation)
        is_wrapper = origin is Annotated or "Required" in str(origin)
        is_many = isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Mapping)
        if not is_wrapper and not is_many:
            return annotation
        annotation = get_args(annotation)[0]


def members(annotation: Any) -> Iterator[Any]:
    """Yields the types of a union, or of a list of it; the type itself if it is none."""
    annotation = unwrap(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from members(one)
    else:
        yield annotation


@cache
def hints(type_: Any) -> dict[str, Any]:
    """Returns the annotations of a model or of a TypedDict; nothing for other types."""
    if hasattr(type_, "model_fields"):
        return {name: field.annotation for name, field in type_.model_fields.items()}
    # `typing.is_typeddict` does not know the TypedDict of typing_extensions, which the SDK uses.
    return get_type_hints(type_, include_extras=True) if hasattr(type_, "__required_keys__") else {}


def flat(annotations: Iterable[Any]) -> Iterator[Any]:
    for annotation in annotations:
        yield from members(annotation)


def tags(annotations: Iterable[Any]) -> frozenset[str]:
    """Returns the values of `type` of all members."""
    return field_literals("type", annotations)


def field_literals(field: str, annotations: Iterable[Any]) -> frozenset[str]:
    """Returns the values that `field` may have in any member."""
    return literals(hints(one)[field] for one in flat(annotations) if field in hints(one))


def literals(annotations: Iterable[Any]) -> frozenset[str]:
    """Returns the values of all literals; a member of another type adds none."""
    return frozenset(
        value for one in flat(annotations) if get_origin(one) is Literal for value in get_args(one) if value is not None
    )


def fields(annotations: Iterable[Any]) -> frozenset[str]:
    """Returns the names of the fields of all members, without `type`."""
    return frozenset(name for one in flat(annotations) for name in hints(one)) - {"type"}


def paths(annotations: Iterable[Any]) -> frozenset[str]:
    """Like `fields`, with the fields of a nested object after a dot instead of the object's."""
    found: set[str] = set()
    for one in flat(annotations):
        for name, annotation in hints(one).items():
            inner = frozenset() if get_origin(unwrap(annotation)) is list else paths((annotation,))
            found |= {f"{name}.{field}" for field in inner} or {name}
    return frozenset(found)


def reachable(annotations: Iterable[Any]) -> list[Any]:
    """Returns all models and TypedDicts in the members and in their fields, at any depth."""
    found: dict[Any, None] = {}
    queue = list(flat(annotations))
    while queue:
        one = queue.pop()
        if one not in found and hints(one):
            found[one] = None
            queue += flat(hints(one).values())
    return list(found)


def header_names(*modules: Any) -> frozenset[str]:
    """Returns the names of HTTP headers in the source of the modules."""
    return frozenset(name.lower() for module in modules for name in HEADER.findall(inspect.getsource(module)))


def main() -> int:
    """Prints the differences; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.api_surface", description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the types of the SDK by group")
    if parser.parse_args().list:
        sys.stdout.write(
            msgspec.json.format(msgspec.json.encode({k: sorted(v) for k, v in sdk_names().items()})).decode()
        )
        return 0
    table = read_table()
    found = compare(table, sdk_names())
    for line in found:
        sys.stdout.write(f"{line}\n")
    total = sum(len(group.rows) for group in table.values())
    sys.stdout.write(f"Claude's API: {total} verdicts, {len(found)} differences to anthropic {anthropic.__version__}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
