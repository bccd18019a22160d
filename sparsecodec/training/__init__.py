"""Training: one loop for all methods, driven by a recipe."""

from sparsecodec.training.families import calibration_loss, family_of, rate_distortion
from sparsecodec.training.method import Method
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.run import initial_model, run
from sparsecodec.training.trainer import Trainer

__all__ = ["Method", "Recipe", "Trainer", "calibration_loss", "family_of", "initial_model", "rate_distortion", "run"]
