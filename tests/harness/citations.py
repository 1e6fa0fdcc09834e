"""Citations in the form of Anthropic's API: a web page, a search result, a PDF and an untitled document."""

from typing import Any

PAGE: dict[str, Any] = {
    "type": "web_search_result_location",
    "cited_text": "Water runs.",
    "url": "https://rivers.example/water",
    "title": "Rivers",
    "encrypted_index": "c2VjcmV0",
}
RESULT: dict[str, Any] = {
    "type": "search_result_location",
    "cited_text": "Water runs.",
    "source": "https://rivers.example/handbook",
    "title": None,
    "search_result_index": 0,
    "start_block_index": 0,
    "end_block_index": 1,
}
FILE: dict[str, Any] = {
    "type": "page_location",
    "cited_text": "Water runs.",
    "document_index": 0,
    "document_title": "rivers.pdf",
    "start_page_number": 1,
    "end_page_number": 2,
    "file_id": "file_1",
}
PLACE: dict[str, Any] = {
    "type": "char_location",
    "cited_text": "Water runs.",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 11,
    "file_id": None,
}
CITATIONS = [PAGE, RESULT, FILE, PLACE, RESULT | {"source": "shelf 7"}]
