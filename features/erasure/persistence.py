"""Erasure of all data of a user or of a tenant in the database. It is a deletion of their turns and sessions."""

from tailrace.persistence.feature import Feature, Parts
from tailrace.persistence.sql import read_queries
from tailrace.persistence.store import LAST_NAME
from tailrace.persistence.tables import Deletion, Names, Tables
from tailrace.proto.runtime.settings import NoSettings


def _names_of_user(user: str, _: bool) -> Names:
    return [("user", user, user)]


def _names_of_tenant(_: str, is_gone: bool) -> Names:
    # Sessions that still have turns need their totals.
    dimensions = ("user", "project", "session") if is_gone else ("user", "project")
    return [(dimension, "", LAST_NAME) for dimension in dimensions]


TABLES = Tables(
    read_queries(__package__),
    deletions={
        "user": Deletion(
            "user_turn_ids",
            (
                ("sessions", "delete_user_sessions"),
                ("sessions", "delete_owned_sessions"),
                ("", "forget_session_user"),
                ("", "forget_session_owner"),
            ),
            has_follow_ups=True,
            has_many_sessions=True,
            erased="user",
            names=_names_of_user,
        ),
        "tenant": Deletion(
            "tenant_turn_ids",
            (("sessions", "delete_tenant_sessions"),),
            has_many_sessions=True,
            erased="tenant",
            names=_names_of_tenant,
        ),
    },
)
FEATURE = Feature(NoSettings, lambda _, __: Parts(), TABLES)
