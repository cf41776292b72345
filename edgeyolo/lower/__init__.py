"""Lowering: one QDQ file becomes what a target executes; one module a target."""
