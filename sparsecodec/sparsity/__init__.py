"""Structured sparsity: channel graph, masks, compaction, counting, gradient decay, mask decay."""

from sparsecodec.sparsity.channel_graph import ChannelGraph, ChannelMap, LayerChannels, Space, trace_model
from sparsecodec.sparsity.compact import apply_compact_config, apply_masks, compact, compact_config, masked
from sparsecodec.sparsity.gating import magnitude_scores
from sparsecodec.sparsity.gradient_decay import GradientDecay
from sparsecodec.sparsity.macs import LayerMacs, MacReport, count, masked_macs, masked_params, masks_for_macs
from sparsecodec.sparsity.mask_decay import MaskDecay
from sparsecodec.sparsity.masks import ChannelMasks
from sparsecodec.sparsity.nm import NM, NMConfig, NMTraining, NMVariant, nm_layers, nm_mask, nm_masked
from sparsecodec.sparsity.nm_packing import PackedNM, pack_nm, unpack_nm
from sparsecodec.sparsity.scatter import ScatterConv2d
from sparsecodec.sparsity.schedules import ApplyTo, DecayConfig, MaskDecayConfig, Method, Penalty
from sparsecodec.sparsity.targets import student_targets, uniform_targets

__all__ = [
    "NM",
    "ApplyTo",
    "ChannelGraph",
    "ChannelMap",
    "ChannelMasks",
    "DecayConfig",
    "GradientDecay",
    "LayerChannels",
    "LayerMacs",
    "MacReport",
    "MaskDecay",
    "MaskDecayConfig",
    "Method",
    "NMConfig",
    "NMTraining",
    "NMVariant",
    "PackedNM",
    "Penalty",
    "ScatterConv2d",
    "Space",
    "apply_compact_config",
    "apply_masks",
    "compact",
    "compact_config",
    "count",
    "magnitude_scores",
    "masked",
    "masked_macs",
    "masked_params",
    "masks_for_macs",
    "nm_layers",
    "nm_mask",
    "nm_masked",
    "pack_nm",
    "student_targets",
    "trace_model",
    "uniform_targets",
    "unpack_nm",
]
