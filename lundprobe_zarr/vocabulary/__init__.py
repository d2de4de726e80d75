"""Floor 0, pure: the words of LUND-PROBE, its file names, and the geometry of its grids."""
