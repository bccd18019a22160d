"""Training: one loop for dense and for pruned codecs, driven by a recipe."""

from sparsecodec.training.recipe import Pruning, Recipe
from sparsecodec.training.run import run
from sparsecodec.training.trainer import Trainer

__all__ = ["Pruning", "Recipe", "Trainer", "run"]
