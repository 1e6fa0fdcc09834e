"""Token counts: a route asks a generator, which calls Anthropic's API."""
