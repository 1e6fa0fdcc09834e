"""Queued turns (`on_busy: queue`): a turn is stored while the turn before it runs, and begins after its end."""
