"""Tickets: tokens in a URL that permit reading the events of one turn. Wraps the route of the events."""
