"""Optional features, one folder each. The core imports none of them: only `__main__` of each process lists them."""
