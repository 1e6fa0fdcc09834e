"""Batches: one entry has all inputs; the generator that runs a batch creates a child turn for each (ADR 19, ADR 21)."""
