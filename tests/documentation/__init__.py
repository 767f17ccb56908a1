"""The documentation says what is so: its commands and code, its generated pages, its links."""
