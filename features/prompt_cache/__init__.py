"""Prompt caching: a filter puts Anthropic's marks into each model call."""
