"""Cohorts of the phantom and of simulated tables."""

from cohorts import many, phantom, reads, simulated

__all__ = ["many", "phantom", "reads", "simulated"]
