"""The one place that knows Hugging Face models: loading, targets, hidden states in, adapters out."""
