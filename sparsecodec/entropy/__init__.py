"""Entropy coding: tables, rANS streams and the container file."""

from sparsecodec.entropy.bitstream import DEFAULT_MAX_PIXELS, Container, Header, crc32c
from sparsecodec.entropy.coder import (
    Decoder,
    Encoder,
    decode,
    encode,
    join_streams,
    observed,
    observing,
    split_streams,
)
from sparsecodec.entropy.lanes import LaneDecoder, LaneEncoder
from sparsecodec.entropy.tables import (
    EntropyTables,
    compressai_scales,
    evc_factorized_tables,
    evc_gaussian_tables,
    gaussian_tables,
    pmf_to_quantized_cdf,
    tables_from_pmf,
)
from sparsecodec.entropy.tiling import Tiling, Window

__all__ = [
    "Container",
    "DEFAULT_MAX_PIXELS",
    "Decoder",
    "Encoder",
    "EntropyTables",
    "Header",
    "Tiling",
    "Window",
    "LaneDecoder",
    "LaneEncoder",
    "compressai_scales",
    "crc32c",
    "decode",
    "encode",
    "evc_factorized_tables",
    "evc_gaussian_tables",
    "gaussian_tables",
    "join_streams",
    "observed",
    "observing",
    "pmf_to_quantized_cdf",
    "split_streams",
    "tables_from_pmf",
]
