"""The health report of a persistence process."""

import msgspec


class PersistenceHealth(msgspec.Struct, frozen=True, omit_defaults=True):
    """`ok`: whether turns can be recorded; if not, `detail` says why."""

    ok: bool
    detail: str
    database: str
    """The name of the database, with its host, for messages."""
    database_id: str
    """The random id that is stored in the database."""
    damaged_turns: int = 0
    """How many turns the log has lost entries of."""
    has_recorded: bool | None = None
    """Whether the database has recorded anything of a log; an older version does not report it."""
    knows: tuple[str, ...] = ()
    """The settings of tenants that the process applies; an older version reports none."""
