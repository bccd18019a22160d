"""Entropy coding: tables, rANS streams and the container file."""

from sparsecodec.entropy.bitstream import Container, Header, crc32c
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
from sparsecodec.entropy.frame_files import FrameFile
from sparsecodec.entropy.groups import DecoderGroup, EncoderGroup
from sparsecodec.entropy.lanes import LaneDecoder, LaneEncoder
from sparsecodec.entropy.limits import DEFAULT_MAX_PIXELS, check_limit
from sparsecodec.entropy.nal import NalFrame, NalReader, NalWriter
from sparsecodec.entropy.rans32 import Decoder32, Encoder32, join_pairs, split_pairs
from sparsecodec.entropy.stored_tables import (
    dcvc_gaussian16_tables,
    dcvc_gaussian16_zigzag_tables,
    dcvc_laplace16_tables,
    dcvc_laplace64_tables,
    evc_gaussian_tables,
)
from sparsecodec.entropy.tables import (
    EntropyTables,
    compressai_scales,
    evc_factorized_tables,
    gaussian_tables,
    pmf_to_quantized_cdf,
    rt_factorized_tables,
    tables_from_pmf,
    uf_factorized_tables,
)
from sparsecodec.entropy.tiling import Tiling, Window
from sparsecodec.entropy.video_bitstream import DROP, VIDEO_MAGIC, VideoHeader
from sparsecodec.entropy.video_file import CodedFrame, VideoReader, VideoWriter

__all__ = [
    "CodedFrame",
    "Container",
    "DEFAULT_MAX_PIXELS",
    "DROP",
    "check_limit",
    "Decoder",
    "Decoder32",
    "DecoderGroup",
    "Encoder",
    "Encoder32",
    "EncoderGroup",
    "EntropyTables",
    "FrameFile",
    "Header",
    "LaneDecoder",
    "LaneEncoder",
    "NalFrame",
    "NalReader",
    "NalWriter",
    "Tiling",
    "VIDEO_MAGIC",
    "VideoHeader",
    "VideoReader",
    "VideoWriter",
    "Window",
    "compressai_scales",
    "crc32c",
    "dcvc_gaussian16_tables",
    "dcvc_gaussian16_zigzag_tables",
    "dcvc_laplace16_tables",
    "dcvc_laplace64_tables",
    "decode",
    "encode",
    "evc_factorized_tables",
    "evc_gaussian_tables",
    "gaussian_tables",
    "join_pairs",
    "join_streams",
    "observed",
    "observing",
    "pmf_to_quantized_cdf",
    "rt_factorized_tables",
    "split_pairs",
    "split_streams",
    "tables_from_pmf",
    "uf_factorized_tables",
]
