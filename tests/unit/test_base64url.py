"""base64url: what is not of its alphabet is refused. Python would ignore it, from 3.15 on with a warning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto.runtime import base64url


@given(st.binary())
def test_content_is_decoded_with_and_without_padding(content: bytes) -> None:
    encoded = base64url.encode(content)
    assert base64url.decode(encoded) == base64url.decode(encoded + "=" * (-len(encoded) % 4)) == content


@pytest.mark.parametrize("text", ["ab+d", "ab/d", "ab d", "ab\n", "ab=d", "abä", "a"])
def test_another_alphabet_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # binascii's messages differ
        base64url.decode(text)
