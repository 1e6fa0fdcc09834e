"""Turns with `store: false`: recorded without content at their end, and erased from the log later (ADR 30)."""
