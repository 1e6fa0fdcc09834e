"""The cost limit of a turn (`max_cost`): the answer is cut when it has cost that much."""
