"""Post-training quantisation to powers of two."""
