"""Projects in the database."""

from tailrace.features.projects.persistence import ProjectTable
from tailrace.persistence.store import Store
from tailrace.proto.ids import TurnId
from tailrace.proto.resources import DeleteResource, TurnToDelete
from tests.harness.stored_turns import (
    OURS,
    running_row,
)
from tests.harness.turn_builder import NOON


async def test_a_project_is_deleted_with_its_last_session(store: Store) -> None:
    """Sessions without turns are deleted; a new turn keeps its session and project."""
    await store.record(
        [running_row("turn-1", project="rivers"), running_row("turn-2", session="session-2", project="rivers")]
    )
    await store.delete(OURS, DeleteResource("project", "rivers", (TurnId("turn-1"),)))
    left = await ProjectTable(store).project(OURS, "rivers", NOON)
    assert left is not None
    assert (left.sessions, await store.turns_to_delete(OURS, DeleteResource("project", "rivers"))) == (
        1,
        [TurnToDelete(TurnId("turn-2"), is_running=True)],
    )
    await store.delete(OURS, DeleteResource("project", "rivers", (TurnId("turn-2"),)))
    assert await ProjectTable(store).project(OURS, "rivers", NOON) is None
