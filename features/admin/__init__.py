"""Routes for operators: keys, limits and usage of all tenants, and the audit log."""
