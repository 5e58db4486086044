"""Helpers of the book: data, splits, towers, sampled softmax, indexes, metrics and results.

Import from the modules (`from recsys_helpers.datasets import load_dataset`); nothing is imported
here, so that the parts which do not need TensorFlow never load it.
"""

__version__ = "0.1.0"
