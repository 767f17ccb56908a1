"""Persistence: one repository contract, implemented with SQLAlchemy over SQLite and PostgreSQL."""
