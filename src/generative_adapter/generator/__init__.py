"""The paper's sections 2.2 and 2.4 on plain tensors: memory, normalisation, low-rank factors."""
