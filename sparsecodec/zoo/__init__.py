"""Codecs on disk: a model is ``NAME.safetensors`` and ``NAME.json`` side by side; some ship inside the package."""

from sparsecodec.zoo.files import find, load, names, save

__all__ = ["find", "load", "names", "save"]
