"""What OpenAI's two protocols say alike, in the terms of Anthropic's Messages API: sources, calls, tools, effort. Pure.

It knows the bodies of neither. What a model does not take is refused by name, or left out where that changes nothing.
Sources: OpenAI's API reference; Anthropic's docs, "Vision", "Tool use", "Effort", "Adaptive thinking".
"""

import base64
from typing import Any, Literal

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import Refused
from tailrace.proto.models import Model

Fields = dict[str, Any]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Choice = Literal["auto", "none", "required"]

NO_INPUT: Fields = {"type": "object", "properties": {}}
PDF, PLAIN = "application/pdf", "text/plain"


def image(url: str, where: str) -> Fields:
    """The block of a picture, by its address or in a data URL; raises Refused."""
    if url.startswith(("https://", "http://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    media_type, encoded = _data(url)
    if encoded is None:
        raise Refused("request_invalid", f"`{where}`: a picture is an https URL, or `data:TYPE;base64,…`")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": encoded}}


def document(file: str, filename: str | None, where: str) -> Fields:
    """The block of a file: a PDF or plain text in a data URL; bare base64 when its name says that it is a PDF."""
    titled = {} if filename is None else {"title": filename}
    return {"type": "document", "source": _document_source(file, filename, where), **titled}


def _document_source(file: str, filename: str | None, where: str) -> Fields:
    media_type, encoded = _data(file)
    if encoded is None:
        media_type, encoded = PDF if (filename or "").lower().endswith(".pdf") else "", file
    if media_type == PDF:
        return {"type": "base64", "media_type": PDF, "data": encoded}
    if media_type != PLAIN:
        raise Refused("request_invalid", f"`{where}`: a file is a PDF or plain text, as `data:TYPE;base64,…`")
    try:
        return {"type": "text", "media_type": PLAIN, "data": base64.b64decode(encoded, validate=True).decode()}
    except ValueError as error:
        # binascii.Error and UnicodeDecodeError are such, and so is what is said of a letter beyond ASCII.
        raise Refused("request_invalid", f"`{where}`: the file is not base64 of UTF-8 text") from error


def _data(url: str) -> tuple[str, str | None]:
    """The type and the base64 of a data URL (RFC 2397); no base64 for what is none."""
    head, comma, encoded = url.partition(",")
    media_type, *parameters = head.removeprefix("data:").split(";")
    if not (comma and head.startswith("data:") and parameters and parameters[-1] == "base64"):
        return "", None
    return media_type.lower(), encoded


def tool(
    name: str, description: str | None, parameters: Fields | None, *, strict: bool | None, **further: object
) -> Fields:
    """A function as a tool, with what Anthropic's own definitions have `further`; one without parameters takes none."""
    said = {"description": description, "strict": strict, **further}
    named = {name: value for name, value in said.items() if value is not None}
    return {"name": name, "input_schema": parameters or NO_INPUT, **named}


def call(call_id: str, name: str, arguments: str, where: str) -> Fields:
    """The block of a call that the assistant has made; raises Refused."""
    try:
        told = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except DECODE_ERRORS as error:
        raise Refused("request_invalid", f"`{where}`: the arguments of a call are no JSON object") from error
    return {"type": "tool_use", "id": call_id, "name": name, "input": told}


def tool_choice(wanted: Choice | None, named: str | None, model: Model, *, parallel: bool | None) -> Fields | None:
    """Which tool is to be called: `named` before `wanted`; None for what is so by itself. Raises Refused."""
    if named is None and wanted == "none":
        return {"type": "none"}
    choice: Fields = {"type": "any" if wanted == "required" else "auto"}
    if named is not None:
        choice = {"type": "tool", "name": named}
    if choice["type"] != "auto" and model.supports.forced_tools is False:
        raise Refused("request_invalid", f"`tool_choice`: {model.id} cannot be made to call a tool: choose `auto`")
    if parallel is False:
        choice["disable_parallel_tool_use"] = True
    return choice if choice != {"type": "auto"} else None


def effort(asked: Effort | None, model: Model, where: str) -> str | None:
    """The effort that `output_config` names; none for `none`, which is a matter of thinking. Raises Refused."""
    efforts = model.supports.effort
    if asked is None or asked == "none" or efforts is None or asked in efforts:
        return None if asked == "none" else asked
    among = f"is one of {', '.join(efforts)}" if efforts else "has none: send `thinking`"
    raise Refused("request_invalid", f"`{where}` of {model.id} {among}")


def thinking(asked: Effort | None, model: Model, where: str) -> Fields | None:
    """Who asks for effort asks for thoughts; in some models they come only when they are asked for. Raises Refused."""
    ways = model.supports.thinking or ()
    match asked:
        case None:
            return None
        case "none" if "disabled" not in ways:
            raise Refused("request_invalid", f"`{where}`: {model.id} cannot be kept from thinking")
        case "none":
            return {"type": "disabled"}
        case _:
            return {"type": "adaptive"} if "adaptive" in ways else None


def sampling(temperature: float | None, top_p: float | None, model: Model) -> tuple[Fields, list[str]]:
    """`temperature` and `top_p` for a model that takes them, and the names of what another ignores; raises Refused."""
    given = {name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None}
    if not model.supports.sampling:
        return {}, list(given)
    if not 0 <= given.get("temperature", 0) <= 1:
        raise Refused("request_invalid", f"`temperature` of {model.id} is from 0 to 1")
    return given, []
