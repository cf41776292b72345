"""The TensorRT target: where Q/DQ pairs go and why, the typed float16 form, and what can be said before building."""
