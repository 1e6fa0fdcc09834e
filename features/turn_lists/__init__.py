"""Lists of turns: running, or with given words, labels, outcome or day; cancels the turns of a session."""
