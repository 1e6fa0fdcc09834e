"""Modules that several features share; neither the core nor a client protocol uses them."""
