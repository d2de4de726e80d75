"""Full-size measurements; each writes its figures, machine and versions to benchmarks/results."""
