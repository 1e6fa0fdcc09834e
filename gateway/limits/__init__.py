"""How much: what a key or a tenant may use, counted over all gateways."""
