"""A slow decoder in plain Python, written from docs/bitstream.md and docs/portable.md and from nothing else.

It imports nothing of the package it judges. Whatever it cannot find on the pages is a defect of the pages.
"""


class Damaged(Exception):
    """Bytes that the pages call damaged."""
