"""One page a file. They call the functions that answer the API, and show what those return."""
