"""Turn a trained YOLO into what an edge device needs, and prove that it is still the same model."""

__version__ = "0.1.0"
