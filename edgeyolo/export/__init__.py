"""The main job: a model goes in, what a target needs comes out. One module per step and target."""
