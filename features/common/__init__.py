"""What several features use, and neither the core nor a client protocol does."""
