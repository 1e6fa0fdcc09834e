"""Traces: a span for each attempt at a turn, and one for each call to the model."""
