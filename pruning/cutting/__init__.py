"""Surgery in memory and from file to file, and GGUF."""
