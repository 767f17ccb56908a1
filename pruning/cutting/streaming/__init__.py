"""A checkpoint cut from files to files, in blocks: memory depends on neither tensors nor shards."""
