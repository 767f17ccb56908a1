"""Reading checkpoints: headers, expected tensors, anatomies, loading."""
