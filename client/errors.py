"""TailraceError: a refused request, or a connection that is lost for good."""


class TailraceError(Exception):
    """A refusal has `status`, and a `code` of docs/ERRORS.md. `is_temporary`: a later try may succeed.

    `is_unreachable`: no connection was established.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after_s: float = 0.0,
        is_temporary: bool = False,
        is_unreachable: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.is_temporary = is_temporary
        self.is_unreachable = is_unreachable
