"""CityHash128 as ClickHouse puts it before each of its compressed blocks: version 1.0.2, which later ones differ from.

The algorithm is published at https://github.com/google/cityhash. Arithmetic is modulo 2^64; Numba compiles it, so that
a block of a megabyte takes well below a millisecond.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from clipql.storage.vectors.compiled import compiled

_U = np.uint64
_K0, _K1 = _U(0xC3A5C85C97CB3127), _U(0xB492B66FBE98F273)
_K2, _K3 = _U(0x9AE16A3B2F90404F), _U(0xC949D7C7509E6557)
_MUL = _U(0x9DDFEA08EB382D69)


def cityhash128(data: bytes) -> bytes:
    """The hash of some bytes, 16 bytes, low half first."""
    low, high = _hash(np.frombuffer(data, np.uint8))
    return struct.pack("<QQ", int(low), int(high))


@compiled
def _word(s: Any, at: int) -> Any:
    """Eight bytes as a little-endian number."""
    found = _U(0)
    for i in range(8):
        found |= _U(s[at + i]) << _U(8 * i)
    return found


@compiled
def _half(s: Any, at: int) -> Any:
    """Four bytes as a little-endian number."""
    found = _U(0)
    for i in range(4):
        found |= _U(s[at + i]) << _U(8 * i)
    return found


@compiled
def _turn(value: Any, bits: int) -> Any:
    return value if bits == 0 else (value >> _U(bits)) | (value << _U(64 - bits))


@compiled
def _mix(value: Any) -> Any:
    return value ^ (value >> _U(47))


@compiled
def _pair(u: Any, v: Any) -> Any:
    a = _mix((u ^ v) * _MUL)
    return _mix((v ^ a) * _MUL) * _MUL


@compiled
def _short(s: Any, at: int, length: int) -> Any:
    """At most 16 bytes."""
    size = _U(length)
    if length > 8:
        a, b = _word(s, at), _word(s, at + length - 8)
        return _pair(a, _turn(b + size, length)) ^ b
    if length >= 4:
        return _pair(size + (_half(s, at) << _U(3)), _half(s, at + length - 4))
    if length > 0:
        y = _U(s[at]) + (_U(s[at + (length >> 1)]) << _U(8))
        z = size + (_U(s[at + length - 1]) << _U(2))
        return _mix(y * _K2 ^ z * _K3) * _K2
    return _K2


@compiled
def _weak(s: Any, at: int, a: Any, b: Any) -> Any:
    """32 bytes with two seeds."""
    w, x, y, z = _word(s, at), _word(s, at + 8), _word(s, at + 16), _word(s, at + 24)
    a = a + w
    b = _turn(b + a + z, 21)
    c = a
    a = a + x + y
    return a + z, b + _turn(a, 44) + c


@compiled
def _murmur(s: Any, at: int, length: int, a: Any, b: Any) -> Any:
    """Less than 128 bytes with a seed of two words."""
    left = length - 16
    if left <= 0:
        a = _mix(a * _K1) * _K1
        c = b * _K1 + _short(s, at, length)
        d = _mix(a + (_word(s, at) if length >= 8 else c))
    else:
        c = _pair(_word(s, at + length - 8) + _K1, a)
        d = _pair(b + _U(length), c + _word(s, at + length - 16))
        a = a + d
        while left > 0:
            a = (a ^ _mix(_word(s, at) * _K1) * _K1) * _K1
            b = b ^ a
            c = (c ^ _mix(_word(s, at + 8) * _K1) * _K1) * _K1
            d = d ^ c
            at += 16
            left -= 16
    a = _pair(a, c)
    b = _pair(d, b)
    return a ^ b, _pair(b, a)


@compiled
def _round(s: Any, at: int, x: Any, y: Any, z: Any, v0: Any, v1: Any, w0: Any, w1: Any) -> Any:
    """64 bytes into the state."""
    x = _turn(x + y + v0 + _word(s, at + 16), 37) * _K1 ^ w1
    y = _turn(y + v1 + _word(s, at + 48), 42) * _K1 ^ v0
    z = _turn(z ^ w0, 33)
    v0, v1 = _weak(s, at, v1 * _K1, x + w0)
    w0, w1 = _weak(s, at + 32, z + w1, y)
    return z, y, x, v0, v1, w0, w1


@compiled
def _long(s: Any, at: int, length: int, x: Any, y: Any) -> Any:
    """128 bytes or more with a seed of two words."""
    z = _U(length) * _K1
    v0 = _turn(y ^ _K1, 49) * _K1 + _word(s, at)
    v1 = _turn(v0, 42) * _K1 + _word(s, at + 8)
    w0 = _turn(y + z, 35) * _K1 + x
    w1 = _turn(x + _word(s, at + 88), 53) * _K1
    while length >= 128:
        x, y, z, v0, v1, w0, w1 = _round(s, at, x, y, z, v0, v1, w0, w1)
        x, y, z, v0, v1, w0, w1 = _round(s, at + 64, x, y, z, v0, v1, w0, w1)
        at += 128
        length -= 128
    y = y + _turn(w0, 37) * _K0 + z
    x = x + _turn(v0 + z, 49) * _K0
    done = 0
    while done < length:
        done += 32
        y = _turn(y - x, 42) * _K0 + v1
        w0 = w0 + _word(s, at + length - done + 16)
        x = _turn(x, 49) * _K0 + w0
        w0 = w0 + v0
        v0, v1 = _weak(s, at + length - done, v0, v1)
    x = _pair(x, v0)
    y = _pair(y, w0)
    return _pair(x + v1, w1) + y, _pair(x + w1, y + v1)


@compiled
def _seeded(s: Any, at: Any, length: Any, x: Any, y: Any) -> Any:
    return _murmur(s, at, length, x, y) if length < 128 else _long(s, at, length, x, y)


@compiled
def _hash(s: Any) -> Any:
    length = len(s)
    if length >= 16:
        return _seeded(s, np.int64(16), length - 16, _word(s, 0) ^ _K3, _word(s, 8))
    if length >= 8:
        return _seeded(s, np.int64(0), np.int64(0), _word(s, 0) ^ (_U(length) * _K0), _word(s, length - 8) ^ _K1)
    return _seeded(s, np.int64(0), length, _K0, _K1)
