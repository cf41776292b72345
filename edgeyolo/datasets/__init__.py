"""Labelled data sets: readers for the formats that people have, and scenes that every machine can make."""

from edgeyolo.datasets.load import load_dataset
from edgeyolo.datasets.sample import Dataset, Problem, Sample
from edgeyolo.datasets.scenes import SceneDataset

SCENES = "scenes:val:8"
"""What commands look at that can do without the user's pictures: generated scenes of digits."""

__all__ = ["SCENES", "Dataset", "Problem", "Sample", "SceneDataset", "load_dataset"]
