"""Lists of turns: those that run, and those with given words, labels, outcome or day; cancels those of a session."""
