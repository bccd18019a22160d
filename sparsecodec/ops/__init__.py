"""The operators of learned codecs: one spec, one differentiable reference and several kernels each."""

from sparsecodec.ops._registry import bind, call, specs, use_backend, why_unavailable
from sparsecodec.ops.compact_symbols import compact_symbols
from sparsecodec.ops.conv2d_act import conv2d_act
from sparsecodec.ops.conv_transpose2d_act import conv_transpose2d_act
from sparsecodec.ops.deform_conv2d import deform_conv2d
from sparsecodec.ops.depth_conv_block import depth_conv_block
from sparsecodec.ops.entropy_parameters import entropy_parameters
from sparsecodec.ops.expand_symbols import expand_symbols
from sparsecodec.ops.gdn import gdn
from sparsecodec.ops.integer_conv2d import integer_conv2d
from sparsecodec.ops.integer_deform_columns import integer_deform_columns
from sparsecodec.ops.integer_gate import integer_gate
from sparsecodec.ops.integer_gdn import integer_gdn
from sparsecodec.ops.integer_scale import integer_scale
from sparsecodec.ops.integer_warp import integer_warp
from sparsecodec.ops.pointwise import pointwise
from sparsecodec.ops.prior_context import prior_context
from sparsecodec.ops.prior_head import prior_head
from sparsecodec.ops.quantize_latent import quantize_latent
from sparsecodec.ops.restore_latent import restore_latent
from sparsecodec.ops.scale_thresholds import (
    dcvc_scale_thresholds,
    evc_scale_thresholds,
    laplace_scale_thresholds,
    rt_scale_thresholds,
    scale_table_thresholds,
    uf_scale_thresholds,
)
from sparsecodec.ops.warp import warp

__all__ = [
    "bind",
    "call",
    "compact_symbols",
    "conv2d_act",
    "conv_transpose2d_act",
    "dcvc_scale_thresholds",
    "deform_conv2d",
    "depth_conv_block",
    "entropy_parameters",
    "evc_scale_thresholds",
    "laplace_scale_thresholds",
    "expand_symbols",
    "gdn",
    "integer_conv2d",
    "integer_deform_columns",
    "integer_gate",
    "integer_gdn",
    "integer_scale",
    "integer_warp",
    "pointwise",
    "prior_context",
    "prior_head",
    "quantize_latent",
    "restore_latent",
    "rt_scale_thresholds",
    "scale_table_thresholds",
    "specs",
    "uf_scale_thresholds",
    "use_backend",
    "warp",
    "why_unavailable",
]
