"""Hostile input: what makes the cases, and what judges them; for the tests and for the long run.

A target makes a case out of a source of choices and runs it. The source is a `random.Random`: a
seeded one, one that Hypothesis draws for, or one that reads the bytes a coverage-guided fuzzer
gives. So the three engines share every case generator.
"""
