"""How good a generator and other methods are: metrics, tasks, benchmarks."""
