"""Entropy coding: tables, rANS streams and the container file."""

from sparsecodec.entropy.bitstream import DEFAULT_MAX_PIXELS, Container, crc32c
from sparsecodec.entropy.coder import Decoder, Encoder, decode, encode, join_streams, split_streams
from sparsecodec.entropy.tables import (
    EntropyTables,
    compressai_scales,
    evc_factorized_tables,
    evc_gaussian_tables,
    gaussian_tables,
    pmf_to_quantized_cdf,
    tables_from_pmf,
)

__all__ = [
    "Container",
    "DEFAULT_MAX_PIXELS",
    "Decoder",
    "Encoder",
    "EntropyTables",
    "compressai_scales",
    "crc32c",
    "decode",
    "encode",
    "evc_factorized_tables",
    "evc_gaussian_tables",
    "gaussian_tables",
    "join_streams",
    "pmf_to_quantized_cdf",
    "split_streams",
    "tables_from_pmf",
]
