"""Floor 1, pure: what a converted dataset looks like: arrays, types, chunks, tables, manifest."""
