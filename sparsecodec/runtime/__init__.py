"""The runtime: `compile_codec` and what it is made of."""

from sparsecodec.runtime.batch import Decoded
from sparsecodec.runtime.codec import CompiledCodec
from sparsecodec.runtime.compile import compile_codec
from sparsecodec.runtime.report import Report, Row
from sparsecodec.runtime.unit_stream import read_units, write_units

__all__ = ["CompiledCodec", "Decoded", "Report", "Row", "compile_codec", "read_units", "write_units"]
