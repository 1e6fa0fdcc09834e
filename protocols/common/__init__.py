"""Modules that several client protocols share and the core does not use. Features may use them, too."""
