"""Adapters and base models in the formats that other tools read."""
