"""Distillation: a student follows its dense teacher."""

from sparsecodec.distill.layerwise import LayerwiseDistillation, blocks_of, feature_distance

__all__ = ["LayerwiseDistillation", "blocks_of", "feature_distance"]
