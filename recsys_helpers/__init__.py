"""Helpers of the book: data, splits, towers, sampled softmax, indexes, metrics and results.

Import from the modules (`from recsys_helpers.datasets import load_dataset`); nothing is imported
here, so that the parts which do not need Keras never load it. Once Keras is there, it is told of
the package's layers: `import recsys_helpers` is enough for `keras.models.load_model`.
"""

import importlib
import importlib.abc
import importlib.util
import sys

__version__ = "0.1.0"


class _WhenKerasIsImported(importlib.abc.MetaPathFinder):
    """Registers the layers right after Keras has been imported, by whomever."""

    def find_spec(self, name, path, target=None):
        """Not ours to find: Python's own finder does, and its loader is made to call us back."""
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("keras")
        if spec and spec.loader:
            load = spec.loader.exec_module

            def load_and_register(module):
                load(module)
                _register()

            spec.loader.exec_module = load_and_register
        return spec


def _register():
    # A module of ours that is just importing Keras registers its layers by itself.
    if f"{__name__}.layers" not in sys.modules:
        importlib.import_module(f"{__name__}.two_tower")


if "keras" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WhenKerasIsImported())
