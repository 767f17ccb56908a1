"""Measurements, side by side. Each module is run by its own `make bench-...` and writes one JSON of `results/`."""
