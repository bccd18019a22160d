"""Distillation: a student follows its dense teacher."""

from sparsecodec.distill.feds import FEDS, channel_divergence
from sparsecodec.distill.layerwise import LayerwiseDistillation, blocks_of, feature_distance
from sparsecodec.distill.observing import stages_of

__all__ = ["FEDS", "LayerwiseDistillation", "blocks_of", "channel_divergence", "feature_distance", "stages_of"]
