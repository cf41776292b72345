"""Recipes of calibration sets, as data; ``edgeyolo.datasets.recipe`` reads them."""
