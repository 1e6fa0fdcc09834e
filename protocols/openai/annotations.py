"""Converts Claude's citations of web pages and files to the annotations of OpenAI's protocols.

Claude cites sources for a whole text block, so an annotation covers the block. Its indices count code points of the
text that this client receives. Sources: OpenAI's API reference, "Annotations"; Anthropic's docs, "Citations" and
"Search results".
"""

from collections.abc import Iterator
from typing import Any

Annotation = dict[str, Any]


def chat_annotations(citations: object, start: int, end: int) -> list[Annotation]:
    """Returns the annotations of a block at `start` to `end` of its message. Chat completions have only web pages."""
    pages = (_url_citation(citation, start, end) for citation in _dicts(citations))
    return [{"type": "url_citation", "url_citation": page} for page in pages if page is not None]


def responses_annotations(citations: object, end: int) -> list[Annotation]:
    """Returns the annotations of a block of `end` characters, which in this protocol is a message of its own."""
    found = (_responses_annotation(citation, end) for citation in _dicts(citations))
    return [annotation for annotation in found if annotation is not None]


def _responses_annotation(citation: dict[str, Any], end: int) -> Annotation | None:
    match citation:
        case {"file_id": str(file)}:
            return {
                "type": "file_citation",
                "file_id": file,
                "filename": _title(citation, "document_title"),
                "index": end,
            }
        case _:
            page = _url_citation(citation, 0, end)
            return None if page is None else {"type": "url_citation", **page}


def _url_citation(citation: dict[str, Any], start: int, end: int) -> Annotation | None:
    match citation:
        # The `source` of a search result that a client has sent may be any string.
        case {"url": str(url)} | {"source": str(url)} if url.startswith(("https://", "http://")):
            return {"url": url, "title": _title(citation, "title"), "start_index": start, "end_index": end}
        case _:
            return None


def _title(citation: dict[str, Any], name: str) -> str:
    """Returns the title, empty where Claude has none: OpenAI's field is required."""
    title = citation.get(name)
    return title if isinstance(title, str) else ""


def _dicts(citations: object) -> Iterator[dict[str, Any]]:
    """Yields the citations that are objects. A block may come from a client, and its content was not validated."""
    if isinstance(citations, list | tuple):
        yield from (citation for citation in citations if isinstance(citation, dict))
