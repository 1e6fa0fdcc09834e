"""Erasure of a user or a tenant: a deletion that overwrites the entries, with queries for the turns and sessions."""
