"""Allocators: rules that turn a budget into per-layer widths without a search, one file each."""
