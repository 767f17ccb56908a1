"""Weights made anew where they stand, one block after the other: sparsified, or in few bits."""
