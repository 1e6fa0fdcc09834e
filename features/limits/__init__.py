"""Limits of a key and of a tenant, counted over all gateways: requests, tokens, money, running turns and streams."""
