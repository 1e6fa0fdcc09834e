"""The encryption of entries: what `decrypt` accepts, and which keys a process keeps."""

import pytest

from tailrace.proto.entry_encryption import KEYS_MAX, MARK, EncryptionKeys, decrypt, encrypt, is_encrypted, new_key

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
