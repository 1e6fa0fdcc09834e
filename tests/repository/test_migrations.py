"""The migrations of the database."""

from tailrace.persistence.migrations import migrations


def test_migrations_are_numbered_without_gaps() -> None:
    """`user_version` counts them, so a gap or a duplicate would skip one."""
    assert [step.number for step in migrations()] == list(range(1, len(migrations()) + 1))
