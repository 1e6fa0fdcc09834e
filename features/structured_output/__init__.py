"""Structured output and forced tool calls: a check of the schema, filters of the call, a check of the answer."""
