"""Structured sparsity: channel graph, masks, compaction, counting, gradient decay."""

from sparsecodec.sparsity.channel_graph import ChannelGraph, ChannelMap, LayerChannels, Space, trace_model
from sparsecodec.sparsity.compact import apply_compact_config, apply_masks, compact, compact_config
from sparsecodec.sparsity.gradient_decay import GradientDecay
from sparsecodec.sparsity.macs import LayerMacs, MacReport, count, masked_macs, masks_for_macs
from sparsecodec.sparsity.masks import ChannelMasks, magnitude_scores
from sparsecodec.sparsity.scatter import ScatterConv2d
from sparsecodec.sparsity.schedules import ApplyTo, DecayConfig, Method

__all__ = [
    "ApplyTo",
    "ChannelGraph",
    "ChannelMap",
    "ChannelMasks",
    "DecayConfig",
    "GradientDecay",
    "LayerChannels",
    "LayerMacs",
    "MacReport",
    "Method",
    "ScatterConv2d",
    "Space",
    "apply_compact_config",
    "apply_masks",
    "compact",
    "compact_config",
    "count",
    "magnitude_scores",
    "masked_macs",
    "masks_for_macs",
    "trace_model",
]
