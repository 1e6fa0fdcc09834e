"""Renders the OpenAPI document as one HTML page without scripts and external resources."""

import json
import re
import shlex
from html import escape
from typing import Any
from urllib.parse import quote, urlencode

from tailrace.features.common.plain_page import plain_page

Json = dict[str, Any]

ADDRESS = "http://127.0.0.1:8000"


def render_page(document: Json) -> str:
    """Returns the page. All text from the document is escaped."""
    info = document["info"]
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    tags = dict.fromkeys(operation["tags"][0] for _, _, operation in operations)
    parts = [f'<section><h2 id="{escape(tag)}">{escape(tag)}</h2>{_section(tag, operations)}</section>' for tag in tags]
    links = "".join(f'<li><a href="#{escape(tag)}">{escape(tag)}</a></li>' for tag in (*tags, "Errors", "Schemas"))
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
        f'<nav aria-label="Groups"><ul>{links}</ul></nav>{"".join(parts)}'
        f'<section><h2 id="Errors">Errors</h2><table>{errors}</table></section>'
        f'<section><h2 id="Schemas">Schemas</h2>{shapes}</section>'
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
        f"<pre>{escape(example_request(path, method, operation))}</pre>"
        f"{'<table>' + ''.join(rows) + '</table>' if rows else ''}{body}{''.join(answers)}</details>"
    )


def example_request(path: str, method: str, operation: Json) -> str:
    """Returns the command of curl for a request with the examples of the document, on several lines."""
    given = operation.get("parameters", ())
    for one in given:
        if one["in"] == "path":
            path = path.replace(f"{{{one['name']}}}", quote(str(one["example"]), safe=""))
    # Only parameters without which the request is refused have examples.
    query = urlencode(
        {
            one["name"]: one["schema"]["examples"][0]
            for one in given
            if one["in"] == "query" and "examples" in one["schema"]
        }
    )
    contents = operation.get("requestBody", {}).get("content", {})
    # curl sends a POST by itself if there is a body.
    verb = "" if method == "get" or (method == "post" and contents) else f"-X {method.upper()} "
    streams = "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    parts = [f"curl -s{'N' if streams else ''} {verb}{ADDRESS}{path}{'?' if query else ''}{query}"]
    if operation.get("security"):
        parts.append('-H "Authorization: Bearer $TAILRACE_KEY"')
    for media_type, content in contents.items():
        if media_type == "multipart/form-data":
            parts.append("-F file=@report.pdf -F purpose=user_data")
        else:
            body = json.dumps(content["example"], ensure_ascii=False)
            parts += [f"-H 'Content-Type: {media_type}'", f"-d {shlex.quote(body)}"]
    return " \\\n  ".join(parts)


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
