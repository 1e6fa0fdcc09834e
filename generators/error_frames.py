"""Frees the memory that is referenced by an error in a reference cycle."""

from traceback import clear_frames


def free_frames(error: BaseException | None) -> None:
    """Clears the variables of all frames in the tracebacks of `error` and of its causes.

    The error of a task group and the frame that raised it refer to each other. This cycle would keep the turn in memory
    until a garbage collection.
    """
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
