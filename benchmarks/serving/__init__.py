"""The parts of `serving_simulation.py`."""
