"""CRC32C (Castagnoli), as MemoryService and UploadModel carry it.

The package google-crc32c is used where it is installed. Otherwise numpy computes it: the data is cut into lanes of 256
bytes, all lanes step through the byte table at once, and neighbours are joined by the operator "append n zero bytes",
which is linear over GF(2) and therefore four table look-ups.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

try:
    from google_crc32c import extend as _extend
except ImportError:  # optional: numpy does it, at some hundred MB/s
    _extend = None

_POLYNOMIAL = 0x82F63B78
_LANE_POWER = 8
_LANE_BYTES = 1 << _LANE_POWER
_MAX_LANES = 4096

_Words = NDArray[np.uint32]


def _byte_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _byte_table()
_TABLE_WORDS: _Words = np.array(_TABLE, np.uint32)


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """The CRC32C of `data`, going on from `value`, the CRC32C of the bytes before. `data` is contiguous."""
    if _extend is not None:
        return int(_extend(value, bytes(data) if not isinstance(data, bytes) else data))
    return crc32c_numpy(data, value)


def crc32c_numpy(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """As `crc32c`, in numpy."""
    octets = np.frombuffer(data, np.uint8)
    state = value ^ 0xFFFFFFFF
    at = 0
    while octets.size - at >= 2 * _LANE_BYTES:
        lanes = min(_MAX_LANES, 1 << ((octets.size - at) // _LANE_BYTES).bit_length() - 1)
        block = octets[at : at + lanes * _LANE_BYTES]
        state = _block(block, state, lanes)
        at += block.size
    for byte in octets[at:].tolist():
        state = _TABLE[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def _block(block: NDArray[np.uint8], state: int, lanes: int) -> int:
    """The register after a block of `lanes` (a power of two) lanes, entered with `state`."""
    columns = np.ascontiguousarray(block.reshape(lanes, _LANE_BYTES).T).astype(np.uint32)
    registers: _Words = np.zeros(lanes, np.uint32)
    registers[0] = state
    for column in columns:
        registers = _TABLE_WORDS[(registers ^ column) & 0xFF] ^ (registers >> 8)
    power = _LANE_POWER
    while registers.size > 1:
        registers = _append_zeros(registers[0::2], power) ^ registers[1::2]
        power += 1
    return int(registers[0])


def _append_zeros(registers: _Words, power: int) -> _Words:
    """The registers after 2**power further zero bytes."""
    tables = _zeros_tables(power)
    result: _Words = tables[0][registers & 0xFF]
    for index in (1, 2, 3):
        result = result ^ tables[index][(registers >> (8 * index)) & 0xFF]
    return result


@lru_cache(maxsize=32)
def _zeros_tables(power: int) -> _Words:
    """The operator "append 2**power zero bytes" as four tables, one for each byte of the register."""
    words = (np.arange(256, dtype=np.uint32)[None, :] << (8 * np.arange(4, dtype=np.uint32)[:, None])).astype(np.uint32)
    if power == 0:
        tables: _Words = _TABLE_WORDS[words & 0xFF] ^ (words >> 8)
        return tables
    return _append_zeros(_append_zeros(words.reshape(-1), power - 1), power - 1).reshape(4, 256)
