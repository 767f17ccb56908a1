"""Pages of the documentation that the code writes: settings (stored), commands, HTTP, Python (made by `make docs`)."""
