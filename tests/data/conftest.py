import struct
import zlib
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def write_raw_png():
    """Writes PNGs of bit depths that Pillow reads but does not write."""

    def write(path: Path, rows: list[bytes], width: int, bits: int, color_type: int) -> Path:
        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        header = struct.pack(">IIBBBBB", width, len(rows), bits, color_type, 0, 0, 0)
        body = zlib.compress(b"".join(b"\0" + row for row in rows))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
        return path

    return write


@pytest.fixture
def photo() -> np.ndarray:
    """A smooth image with 24 rows and 40 columns and four different corners."""
    y, x = np.mgrid[0:24, 0:40]
    return np.stack([x * 6, y * 10, 255 - x * 3 - y * 5], axis=-1).astype(np.uint8)
