"""TFRecord files of tf.train.Example protos, read without TensorFlow.

A record is its length (uint64), a CRC of that, the data, and a CRC of the data; all little-endian.
Each CRC is a CRC-32C, masked: tensorflow/core/lib/io/record_writer.h and lib/hash/crc32c.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.storage.extras import need

# The values of a feature: float32 [n], int64 [n] or n strings of bytes.
Feature = np.ndarray | list[bytes]
_HEADER = struct.Struct('<QI')
_CRC = struct.Struct('<I')
# The wire types of protocol buffers (protobuf.dev/programming-guides/encoding).
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file.

    Raises StorageError, after the last whole record, where the file is cut off or damaged.
    """
    count = 0
    try:
        with path.open('rb') as file:
            size = os.fstat(file.fileno()).st_size
            while file.tell() < size:
                start = file.tell()
                try:
                    record = _record(file, size)
                except ValueError as error:
                    raise StorageError(
                        f'{path}: cut off or damaged after {count} records '
                        f'(byte {start} of {size}: {error})'
                    ) from None
                count += 1
                yield record
    except StorageError:  # it is an OSError as well, and says what is wrong
        raise
    except OSError as error:
        raise StorageError(f'{path}: cannot be read ({error.strerror})') from None


def is_tfrecord(path: Path) -> bool:
    """Return whether a file begins as one of records does."""
    try:
        with path.open('rb') as file:
            header = file.read(_HEADER.size)
    except OSError:
        return False
    if len(header) < _HEADER.size or _HEADER.unpack(header)[0] >= 2**40:
        return False  # most files need no library to say so
    return _masked_crc(header[:8]) == _HEADER.unpack(header)[1]


def read_examples(path: Path) -> Iterator[dict[str, Feature]]:
    """Yield the features of the tf.train.Example in each record.

    Raises StorageError where the file is cut off or damaged, or holds something else.
    """
    for number, record in enumerate(read_records(path)):
        try:
            yield parse_example(record)
        except ValueError as error:
            raise StorageError(f'{path}: record {number} is no Example ({error})') from None


def parse_example(data: bytes) -> dict[str, Feature]:
    """Return {name: values} of a serialised tf.train.Example. Raises ValueError for no such.

    Example{features = 1: Features{feature = 1: map of string to Feature{one of bytes_list = 1,
    float_list = 2, int64_list = 3}}}: tensorflow/core/example/{example,feature}.proto.
    """
    features = {}
    for _, whole in _fields(data, {1}):
        for _, entry in _fields(whole, {1}):
            parts = dict(_fields(entry, {1, 2}))
            try:
                features[bytes(parts[1]).decode()] = _values(parts.get(2, b''))
            except KeyError:
                raise ValueError('a feature has no name') from None
    return features


def _record(file: BinaryIO, size: int) -> bytes:
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise ValueError('half a length')
    length, crc = _HEADER.unpack(header)
    if _masked_crc(header[:8]) != crc:
        raise ValueError('the checksum of a length is another one')
    if length + _CRC.size > size - file.tell():  # before it becomes an allocation
        raise ValueError(f'a record of {length} bytes is not all there')
    data = file.read(length)
    if _masked_crc(data) != _CRC.unpack(file.read(_CRC.size))[0]:
        raise ValueError('the checksum of a record is another one')
    return data


def _masked_crc(data: bytes) -> int:
    crc = need('google_crc32c', 'TFRecord files').value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _values(feature: memoryview | bytes) -> Feature:
    """Return the values of a Feature; without any it is an empty list of bytes."""
    for kind, values in _fields(feature, {1, 2, 3}):
        if kind == 1:
            return [bytes(value) for _, value in _fields(values, {1})]
        if kind == 2:
            # Packed or one by one: what a field holds is some float32.
            parts = [bytes(value) for _, value in _fields(values, {1}, _FIXED32)]
            return np.frombuffer(b''.join(parts), '<f4')
        numbers: list[int] = []
        for _, value in _fields(values, {1}, _VARINT):
            numbers += [value] if isinstance(value, int) else _varints(value)
        # Negative ones are written as uint64.
        return np.array(numbers, np.uint64).astype(np.int64)
    return []


def _fields(
    data: memoryview | bytes, wanted: set[int], also: int = _BYTES
) -> Iterator[tuple[int, memoryview | int]]:
    """Yield the (number, value) of the fields `wanted`, of wire type bytes or `also`."""
    data, at = memoryview(data), 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
            if wire == _BYTES:
                size, at = _varint(data, at)
            if size is None or at + size > len(data):
                raise ValueError(f'a field of wire type {wire} does not fit')
            value, at = data[at : at + size], at + size
        if number in wanted:
            if wire not in (_BYTES, also):
                raise ValueError(f'field {number} has wire type {wire}')
            yield number, value


def _varints(data: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(data):
        number, at = _varint(data, at)
        numbers.append(number)
    return numbers


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, the lowest first, and where the next thing begins."""
    number = 0
    for place in range(10):
        if at + place == len(data):
            break
        byte = data[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80 and number < 2**64:
            return number, at + place + 1
    raise ValueError('a number does not end')
