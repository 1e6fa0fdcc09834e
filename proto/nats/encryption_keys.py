"""The encryption keys of turns whose requests this process has read (PROTOCOL R113)."""

from collections import OrderedDict

from tailrace.proto import entry_encryption

# Another turn's key is read again from its request when it is needed.
TURNS_MAX = 10_000


class EncryptionKeys:
    """Keys by turn, of the turns that were added last."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, tuple[bytes, ...]] = OrderedDict()

    def add(self, turn: str, key: bytes) -> None:
        """Remembers a key of the turn with the filter `turn`. A turn with a fork may have several."""
        known = self._keys.pop(turn, ())
        self._keys[turn] = known if key in known else (*known, key)
        if len(self._keys) > TURNS_MAX:
            self._keys.popitem(last=False)

    def decrypt(self, turn: str, subject: str, payload: bytes) -> bytes:
        """Returns what was encrypted with any known key of the turn; nothing if that is not possible."""
        tried = (entry_encryption.decrypt(key, subject, payload) for key in self._keys.get(turn, ()))
        return next((content for content in tried if content is not None), b"")
