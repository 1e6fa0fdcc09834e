"""Limits of a key and of a tenant, over all processes: requests, tokens, money, running turns and streams."""
