"""Batches through a decoder, one layer at a time."""
