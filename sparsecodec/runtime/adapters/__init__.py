"""One adapter per family: how its codec splits into transforms, and which calls it answers."""

from sparsecodec.runtime.adapters.autoregressive import AutoregressiveCodec
from sparsecodec.runtime.adapters.compressai import FactorizedCodec, HyperpriorCodec
from sparsecodec.runtime.adapters.evc import EVCCodec
from sparsecodec.runtime.adapters.portable import (
    PortableEVCCodec,
    PortableFactorizedCodec,
    PortableHyperpriorCodec,
    PortableScalableEVCCodec,
)
from sparsecodec.runtime.adapters.scalable import ScalableEVCCodec
from sparsecodec.runtime.adapters.variable_rate import VariableRateCodec, VariableRateContextCodec

ADAPTERS = (
    EVCCodec,
    ScalableEVCCodec,
    FactorizedCodec,
    HyperpriorCodec,
    AutoregressiveCodec,
    VariableRateCodec,
    VariableRateContextCodec,
)
PORTABLE_ADAPTERS = (
    PortableEVCCodec,
    PortableScalableEVCCodec,
    PortableFactorizedCodec,
    PortableHyperpriorCodec,
)

__all__ = [
    "ADAPTERS",
    "PORTABLE_ADAPTERS",
    "AutoregressiveCodec",
    "EVCCodec",
    "FactorizedCodec",
    "HyperpriorCodec",
    "PortableEVCCodec",
    "PortableFactorizedCodec",
    "PortableHyperpriorCodec",
    "PortableScalableEVCCodec",
    "ScalableEVCCodec",
    "VariableRateCodec",
    "VariableRateContextCodec",
]
