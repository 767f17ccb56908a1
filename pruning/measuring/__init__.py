"""Statistics, importance, evaluation and generation."""
