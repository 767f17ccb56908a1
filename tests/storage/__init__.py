"""One suite over every database that the repository contract is kept on."""
