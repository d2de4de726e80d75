"""Floor 2, I/O: shards, stores and tables, wherever they live, and whether they are sound."""
