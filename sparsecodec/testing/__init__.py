"""Cases that tests and benches share, and the judge that compares implementations with references."""

from sparsecodec.testing import (
    compact_symbols,
    conv2d_act,
    conv_transpose2d_act,
    deform_conv2d,
    depth_conv_block,
    entropy_parameters,
    gdn,
    integer_conv2d,
    integer_deform_columns,
    integer_gate,
    integer_gdn,
    integer_scale,
    integer_warp,
    pointwise,
    prior_context,
    prior_head,
    warp,
)
from sparsecodec.testing.compare import OpCase, Verdict, islanded, judge, run_eager, run_planned

CASES: list[OpCase] = [
    *pointwise.CASES,
    *conv2d_act.CASES,
    *conv_transpose2d_act.CASES,
    *deform_conv2d.CASES,
    *depth_conv_block.CASES,
    *entropy_parameters.CASES,
    *compact_symbols.CASES,
    *gdn.CASES,
    *integer_conv2d.CASES,
    *integer_deform_columns.CASES,
    *integer_gate.CASES,
    *integer_gdn.CASES,
    *integer_scale.CASES,
    *integer_warp.CASES,
    *prior_context.CASES,
    *prior_head.CASES,
    *warp.CASES,
]

__all__ = ["CASES", "OpCase", "Verdict", "islanded", "judge", "run_eager", "run_planned"]
