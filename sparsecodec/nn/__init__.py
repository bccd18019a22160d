"""Layers that the codecs are built of."""

from sparsecodec.nn.dual_prior import DualPrior, DualPriorCoder, first_pass
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
from sparsecodec.nn.likelihood import BitEstimator, factorized_tables, gaussian_likelihood, round_ste

__all__ = [
    "BitEstimator",
    "ConvFFN",
    "DepthConv",
    "DepthConvBlock",
    "DualPrior",
    "DualPriorCoder",
    "PriorBlock",
    "PriorBlockUp",
    "PriorDepthConv",
    "PriorFFN",
    "ResidualBlockStride2",
    "ResidualBlockUpsample",
    "factorized_tables",
    "first_pass",
    "gaussian_likelihood",
    "lower_bound",
    "round_ste",
    "subpel_conv1x1",
]
