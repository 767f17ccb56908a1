"""Plans, targets, limits, prices and rankings: numpy only."""
