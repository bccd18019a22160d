"""One adapter per family: how its codec splits into transforms, and which calls it answers."""

from sparsecodec.runtime.adapters.autoregressive import AutoregressiveCodec
from sparsecodec.runtime.adapters.compressai import FactorizedCodec, HyperpriorCodec
from sparsecodec.runtime.adapters.dcvc import DCVCCodec
from sparsecodec.runtime.adapters.dcvc_dc import DCImageObject, DCVideoObject, FMImageObject, FMVideoObject
from sparsecodec.runtime.adapters.dcvc_hem import DCVCHEMCodec
from sparsecodec.runtime.adapters.dcvc_rt import DCVCRTCodec
from sparsecodec.runtime.adapters.dcvc_uf import UFImageObject, UFVideoObject
from sparsecodec.runtime.adapters.evc import EVCCodec
from sparsecodec.runtime.adapters.fvc import FVCCodec
from sparsecodec.runtime.adapters.portable import (
    PortableEVCCodec,
    PortableFactorizedCodec,
    PortableHyperpriorCodec,
    PortableScalableEVCCodec,
    PortableVariableRateCodec,
)
from sparsecodec.runtime.adapters.portable_dcvc import PortableDCVCCodec
from sparsecodec.runtime.adapters.portable_fvc import PortableFVCCodec
from sparsecodec.runtime.adapters.portable_hem import PortableHEMCodec
from sparsecodec.runtime.adapters.portable_rt import PortableRTCodec
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
    PortableRTCodec,
    PortableHEMCodec,
    PortableDCVCCodec,
    PortableFVCCodec,
    PortableEVCCodec,
    PortableScalableEVCCodec,
    PortableFactorizedCodec,
    PortableHyperpriorCodec,
    PortableVariableRateCodec,
)
VIDEO_ADAPTERS = (DCVCRTCodec, DCVCHEMCodec, DCVCCodec, FVCCodec)
FOREIGN_OBJECTS = (DCImageObject, DCVideoObject, FMImageObject, FMVideoObject, UFImageObject, UFVideoObject)

__all__ = [
    "ADAPTERS",
    "FOREIGN_OBJECTS",
    "PORTABLE_ADAPTERS",
    "VIDEO_ADAPTERS",
    "AutoregressiveCodec",
    "DCImageObject",
    "DCVCCodec",
    "DCVCHEMCodec",
    "DCVCRTCodec",
    "DCVideoObject",
    "EVCCodec",
    "FMImageObject",
    "FMVideoObject",
    "FVCCodec",
    "FactorizedCodec",
    "HyperpriorCodec",
    "PortableDCVCCodec",
    "PortableEVCCodec",
    "PortableFVCCodec",
    "PortableFactorizedCodec",
    "PortableHEMCodec",
    "PortableHyperpriorCodec",
    "PortableRTCodec",
    "PortableScalableEVCCodec",
    "ScalableEVCCodec",
    "UFImageObject",
    "UFVideoObject",
    "VariableRateCodec",
    "VariableRateContextCodec",
]
