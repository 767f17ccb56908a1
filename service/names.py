"""What names look like in requests."""

NAME_PATTERN = r"^[^\x00-\x1f\x7f]+$"
"""Control characters name nothing, and PostgreSQL cannot store a NUL."""
