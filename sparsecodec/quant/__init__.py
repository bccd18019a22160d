"""Quantisation: convolutions on integers, calibrated on the rate-distortion loss, trained further, or mixed in bits."""

from sparsecodec.quant.calibration import Observation, observe, set_scales
from sparsecodec.quant.layers import QuantConv2d, QuantConvTranspose2d
from sparsecodec.quant.mixed import (
    BITS,
    MixedPlan,
    Sensitivities,
    bytes_where_cheap,
    plan_for_bytes,
    plan_for_threshold,
    sensitivities,
)
from sparsecodec.quant.model import (
    apply_quantization,
    find_layers,
    freeze,
    prove_no_overflow,
    quantization_config,
    quantize_layers,
    quantized_layers,
    stored_bytes,
    trained_numbers,
)
from sparsecodec.quant.portable import W8A8, W8A16, W16A16, is_exact, is_portable, on_dyadic_integers, portable
from sparsecodec.quant.precision import Precision
from sparsecodec.quant.refine import post_training, refine
from sparsecodec.quant.tables import IntegerTables

__all__ = [
    "BITS",
    "W8A8",
    "W8A16",
    "W16A16",
    "IntegerTables",
    "MixedPlan",
    "Observation",
    "Precision",
    "QuantConv2d",
    "QuantConvTranspose2d",
    "Sensitivities",
    "apply_quantization",
    "bytes_where_cheap",
    "find_layers",
    "freeze",
    "is_exact",
    "is_portable",
    "observe",
    "on_dyadic_integers",
    "plan_for_bytes",
    "plan_for_threshold",
    "portable",
    "post_training",
    "prove_no_overflow",
    "quantization_config",
    "quantize_layers",
    "quantized_layers",
    "refine",
    "sensitivities",
    "set_scales",
    "stored_bytes",
    "trained_numbers",
]
