"""The timeline of a turn: a route reads the turn's entries and the reports of its readers."""
