"""What a model is made of: layers, units, tensors and their roles, families."""
