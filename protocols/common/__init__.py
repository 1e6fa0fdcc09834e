"""What several client protocols use, and the core does not. Features may use it, too."""
