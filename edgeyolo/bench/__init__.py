"""Measure bundles and models."""
