"""LoggedCauses: logs each cause of a failure once, however often the work is tried again."""


class LoggedCauses:
    """The causes that were logged since the last `clear`."""

    def __init__(self) -> None:
        self._causes = set[str]()

    def add(self, cause: str) -> bool:
        """Returns whether `cause` is new, and has to be logged."""
        is_new = cause not in self._causes
        self._causes.add(cause)
        return is_new

    def clear(self) -> None:
        """Forgets all causes, after a success."""
        self._causes.clear()
