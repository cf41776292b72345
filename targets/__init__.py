"""What runs on a target: the C engine, board profiles."""
