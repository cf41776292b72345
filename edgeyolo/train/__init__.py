"""Training of Darknet-family networks: loss, augmentation, loop and checkpoints."""
