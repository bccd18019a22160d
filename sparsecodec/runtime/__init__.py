"""The runtime: `compile_codec` and what it is made of."""

from sparsecodec.runtime.batch import Decoded
from sparsecodec.runtime.codec import CompiledCodec
from sparsecodec.runtime.compile import compile_codec
from sparsecodec.runtime.report import Report, Row

__all__ = ["CompiledCodec", "Decoded", "Report", "Row", "compile_codec"]
