"""Layers that the codecs are built of."""

from sparsecodec.nn.dual_prior import CodingLayout, DualPrior, DualPriorCoder, first_pass
from sparsecodec.nn.flow import FlowNetwork, FlowStep, double_size, warp_by_grid
from sparsecodec.nn.layers import (
    ConvFFN,
    DepthConv,
    DepthConvBlock,
    PriorBlock,
    PriorBlockUp,
    PriorDepthConv,
    PriorFFN,
    ResidualBlockStride2,
    ResidualBlockUpsample,
    lower_bound,
    subpel_conv1x1,
)
from sparsecodec.nn.likelihood import (
    BitEstimator,
    factorized_tables,
    gaussian_likelihood,
    laplace_likelihood,
    rate_factorized_tables,
    round_ste,
)

__all__ = [
    "BitEstimator",
    "CodingLayout",
    "ConvFFN",
    "DepthConv",
    "DepthConvBlock",
    "DualPrior",
    "DualPriorCoder",
    "FlowNetwork",
    "FlowStep",
    "PriorBlock",
    "PriorBlockUp",
    "PriorDepthConv",
    "PriorFFN",
    "ResidualBlockStride2",
    "ResidualBlockUpsample",
    "double_size",
    "factorized_tables",
    "first_pass",
    "gaussian_likelihood",
    "laplace_likelihood",
    "lower_bound",
    "rate_factorized_tables",
    "round_ste",
    "subpel_conv1x1",
    "warp_by_grid",
]
