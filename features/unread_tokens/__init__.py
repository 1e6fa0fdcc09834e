"""Unread tokens: counts at the end of a turn the tokens that were generated while it had no reader."""
