"""Training of generators with an encoder: passages read once, lookups first, then through the base model."""
