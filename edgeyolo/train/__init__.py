"""Training of Darknet-family detectors.

``recipe`` (every choice) -> ``pictures`` (cache, batches) -> ``augment`` -> ``assign`` + ``loss`` -> ``trainer`` (the
loop) -> ``checkpoint`` and ``metrics`` (what stays on disk).
"""
