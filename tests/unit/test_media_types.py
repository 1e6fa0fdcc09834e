"""Media types under other names, in the protocols whose requests are translated."""

from typing import Any

import pytest

from tailrace.protocols.common.file_block import build_file
from tailrace.protocols.common.media_types import ALIASES, IMAGES, PDF, accepted_type

DATA = "AAECAwQFBgcICQoLDA=="


@pytest.mark.parametrize(("name", "accepted"), ALIASES.items())
def test_a_media_type_has_the_name_that_claude_accepts(name: str, accepted: str) -> None:
    """Names are compared without case (RFC 2045, section 5.1)."""
    assert accepted in (*IMAGES, PDF)
    source: Any = {"type": "base64", "media_type": accepted, "data": DATA}
    for given in (name, name.upper()):
        url = f"data:{given};base64,{DATA}"
        block = {"type": "document" if accepted == PDF else "image", "source": source}
        assert build_file(given, url) == build_file("", url) == build_file(given, DATA) == [block]


def test_an_unknown_media_type_keeps_its_name() -> None:
    """Without parameters."""
    assert accepted_type("Image/Tiff; q=1") == "image/tiff"
