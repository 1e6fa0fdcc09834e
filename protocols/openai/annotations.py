"""Converts Claude's citations of web pages and files to the annotations of OpenAI's protocols.

Claude cites sources for a whole text block, so an annotation covers the block. Its indices count code points of the
text that this client receives, which consecutive blocks have together. Sources: OpenAI's API reference, "Annotations";
Anthropic's docs, "Citations" and "Search results".
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tailrace.gateway.clients.block_start import split_start
from tailrace.gateway.clients.text_order import started_text
from tailrace.proto import events

Annotation = dict[str, Any]


class TextSpan(NamedTuple):
    """The length of a text block so far, in characters, and its citations."""

    block: int = 0
    chars: int = 0
    citations: tuple[dict[str, Any], ...] = ()


Spans = tuple[TextSpan, ...]


def measure(spans: Spans, event: events.Event | events.UnknownEvent) -> Spans:
    """Returns the text blocks after an event."""
    match event:
        case events.BlockStart(index, {"type": "text"} as block):
            return (*spans, span_of(index, block))
        case events.BlockDelta(index, events.TextDelta(text)):
            return _change(spans, index, len(text), ())
        case events.BlockDelta(index, events.CitationsDelta(citation)):
            return _change(spans, index, 0, (citation,))
        case _:
            return spans


def _change(spans: Spans, index: int, chars: int, citations: tuple[dict[str, Any], ...]) -> Spans:
    """Returns the text blocks after a delta of the block `index`, which is nearly always the last one."""
    for position in range(len(spans) - 1, -1, -1):
        block, before, cited = spans[position]
        if block == index:
            changed = TextSpan(block, before + chars, (*cited, *citations) if citations else cited)
            return (*spans[:position], changed, *spans[position + 1 :])
    return spans


def span_of(index: int, block: Mapping[str, Any]) -> TextSpan:
    """Returns a text block as it is in its start, or as it is stored."""
    _, deltas = split_start(dict(block))
    citations = tuple(delta.citation for delta in deltas if isinstance(delta, events.CitationsDelta))
    return TextSpan(index, len(started_text(dict(block))), citations)


def text_spans(content: Iterable[Mapping[str, Any]]) -> Spans:
    """Returns the text blocks of a stored answer."""
    return tuple(span_of(index, block) for index, block in enumerate(content) if block.get("type") == "text")


def chat_annotations(spans: Iterable[TextSpan]) -> list[Annotation]:
    """Returns the annotations of a message with these text blocks. Chat completions have only web pages."""
    return [
        {"type": "url_citation", "url_citation": {name: value for name, value in one.items() if name != "type"}}
        for one in responses_annotations(spans)
        if one["type"] == "url_citation"
    ]


def responses_annotations(spans: Iterable[TextSpan]) -> list[Annotation]:
    """Returns the annotations of a message with these text blocks."""
    found: list[Annotation] = []
    start = 0
    for span in spans:
        end = start + span.chars
        for citation in span.citations:
            match citation:
                case {"file_id": str(file)}:
                    title = _title(citation, "document_title")
                    found.append({"type": "file_citation", "file_id": file, "filename": title, "index": end})
                # The `source` of a search result that a client has sent may be any string.
                case {"url": str(url)} | {"source": str(url)} if url.startswith(("https://", "http://")):
                    page = {"url": url, "title": _title(citation, "title"), "start_index": start, "end_index": end}
                    found.append({"type": "url_citation", **page})
        start = end
    return found


def _title(citation: dict[str, Any], name: str) -> str:
    """Returns the title, empty where Claude has none: OpenAI's field is required."""
    title = citation.get(name)
    return title if isinstance(title, str) else ""
