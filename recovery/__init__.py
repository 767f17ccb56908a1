"""Training after cutting: what a pruned model has lost, won back from its dense model and a little data."""
