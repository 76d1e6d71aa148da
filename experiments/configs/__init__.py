"""One file an experiment: what it does, its command, its cost and what it should reach."""
