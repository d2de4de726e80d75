"""Other ways to read the same patches: which, installed where, how they compare."""
