"""Failover between backends, with circuit breakers: chooses the order of the backends for each call."""
