"""The C99 integer engine."""
