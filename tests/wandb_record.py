"""What a record of Weights & Biases holds, in one piece: its file is cut into blocks, anywhere in a word."""

import struct
from pathlib import Path


BLOCK, HEADER = 32768, struct.Struct("<IHB")  # as LevelDB writes its log: checksum, length, kind


def record_content(path: Path) -> bytes:
    """The content of an offline run's `.wandb` file without the headers of its blocks."""
    written, place, parts = path.read_bytes(), HEADER.size, []
    assert written.startswith(b":W&B")
    while place + HEADER.size <= len(written):
        if BLOCK - place % BLOCK < HEADER.size:  # no room for a header: the next one begins a block
            place += BLOCK - place % BLOCK
            continue
        _, length, _ = HEADER.unpack_from(written, place)
        place += HEADER.size
        parts.append(written[place : place + length])
        place += length
    return b"".join(parts)
