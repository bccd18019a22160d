"""CRC-32C: reflected polynomial 82f63b78, initial value and final complement ffffffff."""


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = [_entry(byte) for byte in range(256)]


def crc32c(data: bytes, start: int = 0) -> int:
    """Of `data`, continued from the CRC of what stands in front."""
    crc = start ^ 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
