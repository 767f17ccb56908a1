"""The domain: what a decoder is made of, what a plan is, what it costs, and how it is applied.

Nothing in here knows of a database or of HTTP. Importing the package imports no torch: modules that
need it import it themselves.
"""
