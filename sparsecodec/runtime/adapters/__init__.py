"""One adapter per family: how its codec splits into transforms, and which calls it answers."""

from sparsecodec.runtime.adapters.autoregressive import AutoregressiveCodec
from sparsecodec.runtime.adapters.compressai import FactorizedCodec, HyperpriorCodec
from sparsecodec.runtime.adapters.evc import EVCCodec
from sparsecodec.runtime.adapters.scalable import ScalableEVCCodec

ADAPTERS = (EVCCodec, ScalableEVCCodec, FactorizedCodec, HyperpriorCodec, AutoregressiveCodec)

__all__ = ["ADAPTERS", "AutoregressiveCodec", "EVCCodec", "FactorizedCodec", "HyperpriorCodec", "ScalableEVCCodec"]
