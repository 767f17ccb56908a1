"""The endpoints, one resource a file. Those that touch the database are plain functions: FastAPI runs them in
its thread pool, and the event loop stays free."""
