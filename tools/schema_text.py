"""Documents with schemas as JSON."""

import inspect
import json
from typing import Any


def schema_text(document: Any) -> str:
    """Returns a document with schemas as JSON."""
    return json.dumps(without_indents(document), indent=1) + "\n"


def without_indents(document: Any) -> Any:
    """Returns a document whose descriptions have no indentation. Docstrings have none since Python 3.13."""
    match document:
        case dict():
            return {
                key: inspect.cleandoc(value)
                if key == "description" and isinstance(value, str)
                else without_indents(value)
                for key, value in document.items()
            }
        case list():
            return [without_indents(value) for value in document]
    return document
