"""Jobs: what can be asked for, what is checked before it waits, and what is told of it."""
