"""Renders the OpenAPI document as one HTML page without scripts and external resources."""

import json
import re
from html import escape
from typing import Any

from tailrace.features.common.plain_page import plain_page

Json = dict[str, Any]


def render_page(document: Json) -> str:
    """Returns the page. All text from the document is escaped."""
    info = document["info"]
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    tags = dict.fromkeys(operation["tags"][0] for _, _, operation in operations)
    parts = [f"<section><h2>{escape(tag)}</h2>{_section(tag, operations)}</section>" for tag in tags]
    schemas = document["components"]["schemas"]
    errors = "".join(
        f"<tr><td><code>{escape(status)}</code></td><td>{_text(answer['description'])}</td></tr>"
        for status, answer in document["components"]["responses"].items()
    )
    shapes = "".join(_schema(name, schema) for name, schema in sorted(schemas.items()))
    content = (
        f"<h1>{escape(info['title'])} API {escape(info['version'])}</h1><p>{_text(info['description'])}</p>"
        "<p>Send a key in <code>Authorization: Bearer</code> or <code>x-api-key</code>. "
        'Programs can read <a href="/openapi.json">the OpenAPI document</a>.</p>'
        f"{''.join(parts)}<section><h2>Errors</h2><table>{errors}</table></section><section><h2>Schemas</h2>{shapes}</section>"
    )
    return plain_page(f"{info['title']} API", content, "/docs")


def _section(tag: str, operations: list[tuple[str, str, Json]]) -> str:
    return "".join(_operation(*one) for one in operations if one[2]["tags"][0] == tag)


def _operation(path: str, method: str, operation: Json) -> str:
    rows = [
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td>"
        f"<td>{_text(one.get('description', ''))}</td></tr>"
        for one in operation.get("parameters", ())
    ]
    body = _content("Body", operation.get("requestBody", {}))
    answers = [
        _content(f"{status}: {answer['description']}", answer)
        for status, answer in operation["responses"].items()
        if "$ref" not in answer
    ]
    scopes = {scope for one in operation.get("security", ()) for needed in one.values() for scope in needed}
    needs = "".join(f" Needs the scope <code>{escape(scope)}</code>." for scope in sorted(scopes)) or " Needs no key."
    return (
        f'<details id="{escape(operation["operationId"])}"><summary><span class="method">{method.upper()}</span>'
        f"<code>{escape(path)}</code> {_text(operation.get('summary', ''))}</summary>"
        f"<p>{_text(operation.get('description', ''))}{needs}</p>"
        f"{'<table>' + ''.join(rows) + '</table>' if rows else ''}{body}{''.join(answers)}</details>"
    )


def _content(title: str, holder: Json) -> str:
    kinds = [
        f"<li><code>{escape(media)}</code> {_type(content.get('schema', {'type': 'events'}))}{_example(content)}</li>"
        for media, content in holder.get("content", {}).items()
    ]
    return f"<h3>{_text(title)}</h3><ul>{''.join(kinds)}</ul>" if kinds or "description" in holder else ""


def _schema(name: str, schema: Json) -> str:
    required = set(schema.get("required", ()))
    rows = [
        f"<tr><td><code>{escape(field)}</code>{'' if field in required else ' (optional)'}</td>"
        f"<td>{_type(kind)}</td><td>{_text(kind.get('description', ''))}{_value(kind)}</td></tr>"
        for field, kind in schema.get("properties", {}).items()
    ]
    about = _text(schema.get("description", ""))
    return (
        f'<details id="shape-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<p>{about}</p><table>{''.join(rows)}</table></details>"
    )


def _example(content: Json) -> str:
    """Returns the example of a body as HTML; '' without one."""
    match content:
        case {"example": str(text)}:
            return f"<pre>{escape(text)}</pre>"
        case {"example": value}:
            return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
        case _:
            return ""


def _value(schema: Json) -> str:
    """Returns the example of a property as HTML; '' if its type already shows all values."""
    match schema:
        case {"enum": _} | {"const": _} | {"type": "boolean"}:
            return ""
        case {"examples": [value]} if value is not None:
            return f" Example: <code>{escape(json.dumps(value, ensure_ascii=False))}</code>"
        case _:
            return ""


def _text(text: str) -> str:
    """Returns escaped text with `code` for what is in backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _type(schema: Json) -> str:
    """Describes a schema in a few words, with a link to a named one."""
    match schema:
        case {"$ref": str(ref)}:
            name = escape(ref.rpartition("/")[2])
            return f'<a href="#shape-{name}"><code>{name}</code></a>'
        case {"anyOf": list(kinds)} | {"oneOf": list(kinds)}:
            return " or ".join(_type(kind) for kind in kinds)
        case {"type": "array", "items": dict(items)}:
            return f"list of {_type(items)}"
        case {"enum": list(values)}:
            return ", ".join(f"<code>{escape(str(value))}</code>" for value in values)
        case {"const": value}:
            return f"<code>{escape(str(value))}</code>"
        case {"type": kind}:
            return escape(str(kind))
        case _:
            return "anything"
