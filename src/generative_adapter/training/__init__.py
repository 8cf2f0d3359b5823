"""Training a generator: recipes, contexts, one parallel pass, the loop, checkpoints."""
