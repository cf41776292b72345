"""Labelled data sets: readers for the formats that people have, and scenes that every machine can make."""

from edgeyolo.datasets.load import load_dataset
from edgeyolo.datasets.sample import Dataset, Problem, Sample
from edgeyolo.datasets.scenes import SceneDataset

__all__ = ["Dataset", "Problem", "Sample", "SceneDataset", "load_dataset"]
