"""The page: what the API tells, for people. Rendered here, usable without JavaScript; it has no schema of its own."""
