"""What tests read that was made by an earlier version, and the scripts that made it."""
