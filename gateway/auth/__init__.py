"""Who may: credentials and what carries them, callers and their scopes, hosts and origins."""
