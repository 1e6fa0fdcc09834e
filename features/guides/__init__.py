"""The pages `/guides`: the documentation in docs/, which is part of the package, with a search."""
