"""Names a turn's field as the client's protocol does, in the error of a refused request."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tailrace.proto.errors import Refused


@contextmanager
def name_as_client(names: Mapping[str, str]) -> Iterator[None]:
    """In a Refused from the block, replaces the name of a turn's field by the client's name."""
    try:
        yield
    except Refused as refused:
        field = "parent" if refused.code == "parent_not_found" else refused.param or ""
        if (name := names.get(field.partition("[")[0])) is not None:
            refused.message = refused.message.replace(f"`{field}`", f"`{name}`", 1)
            refused.param = name
        raise
