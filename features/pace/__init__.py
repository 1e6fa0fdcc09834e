"""The pace of a replay (`?pace=`)."""
