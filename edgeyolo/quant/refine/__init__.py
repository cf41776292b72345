"""Refinements that win accuracy back, one a file, each with its algebra at the top."""
