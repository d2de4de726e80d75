"""Floor 4: ways to look at a dataset, independent of each other."""
