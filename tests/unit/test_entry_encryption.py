"""The encryption of entries: what `decrypt` accepts, and which keys a process keeps."""

import pytest

from tailrace.proto.entry_encryption import KEYS_MAX, MARK, EncryptionKeys, decrypt, encrypt, is_encrypted, new_key
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq

SUBJECT = "turns.tenant.turn.event"
PAYLOAD = b'{"prev":1,"attempt":1}'


def flip_bit(content: bytes, at: int) -> bytes:
    """Returns `content` with a changed bit in the byte at `at`."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.rule("R113")
def test_only_the_unchanged_entry_is_decrypted_with_its_key_and_on_its_subject() -> None:
    key = new_key()
    encrypted = encrypt(key, SUBJECT, PAYLOAD)
    assert decrypt(key, SUBJECT, encrypted) == PAYLOAD
    assert (is_encrypted(encrypted), is_encrypted(PAYLOAD), is_encrypted(b"")) == (True, False, False)
    assert PAYLOAD not in encrypted
    # The same entry, published again, has another nonce.
    assert encrypt(key, SUBJECT, PAYLOAD) != encrypted
    assert decrypt(new_key(), SUBJECT, encrypted) is None
    assert decrypt(key, "turns.tenant.other.event", encrypted) is None
    for at in range(1, len(encrypted)):
        assert decrypt(key, SUBJECT, flip_bit(encrypted, at)) is None
    for length in range(1, len(encrypted)):
        assert decrypt(key, SUBJECT, encrypted[:length]) is None


@pytest.mark.rule("R113")
def test_a_key_of_a_wrong_length_decrypts_nothing() -> None:
    assert decrypt(b"short", SUBJECT, MARK + bytes(40)) is None


@pytest.mark.rule("R113")
def test_the_keys_of_the_turns_that_were_added_last_are_kept() -> None:
    keys, first, second = EncryptionKeys(), new_key(), new_key()
    keys.add("old", first)
    keys.add("forked", first)
    keys.add("forked", second)
    for number in range(KEYS_MAX - 1):
        keys.add(f"turn {number}", first)
        # It is still in use.
        keys.add("forked", second)
    for key in (first, second):
        assert keys.decrypt("forked", SUBJECT, encrypt(key, SUBJECT, PAYLOAD)) == PAYLOAD
    assert keys.decrypt("old", SUBJECT, encrypt(first, SUBJECT, PAYLOAD)) == b""
    assert keys.decrypt("forked", SUBJECT, encrypt(new_key(), SUBJECT, PAYLOAD)) == b""


@pytest.mark.rule("R113")
def test_new_entries_are_encrypted_with_the_key_of_the_first_request() -> None:
    """A process that has read the turn from the middle gets this key from the stream's leader."""
    keys, first, fork = EncryptionKeys(), new_key(), new_key()
    keys.add("forked", fork)
    assert not keys.has_valid("forked")
    for seq, key in ((7, fork), (5, first), (7, fork), (9, None)):
        keys.add_valid("forked", Seq(seq), key)
    assert decrypt(first, SUBJECT, keys.encrypt("forked", SUBJECT, PAYLOAD)) == PAYLOAD
    for key in (first, fork):
        assert keys.decrypt("forked", SUBJECT, encrypt(key, SUBJECT, PAYLOAD)) == PAYLOAD


@pytest.mark.rule("R113")
def test_nothing_is_returned_in_clear_unless_the_request_is_known_to_have_no_key() -> None:
    """A turn that was not written for the longest time is forgotten, whether it has a key or not."""
    keys = EncryptionKeys()
    keys.add_valid("old", Seq(1), new_key())
    keys.add_valid("plain", Seq(2), None)
    for number in range(KEYS_MAX - 1):
        keys.add_valid(f"turn {number}", Seq(3), None)
        assert keys.encrypt("plain", SUBJECT, PAYLOAD) == PAYLOAD
    for turn in ("old", "never read"):
        assert not keys.has_valid(turn)
        with pytest.raises(LogUnavailable, match=r"^the request of .* is not known"):
            keys.encrypt(turn, SUBJECT, PAYLOAD)
