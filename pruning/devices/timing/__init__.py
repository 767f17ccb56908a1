"""Measuring how long a machine takes."""
