# SPDX-License-Identifier: Apache-2.0
"""Zip files from strangers: nothing is unpacked, and nothing may take more memory than it says.

A zip file lies easily: a short list of members may hide a long one, a member may unpack to more than it
announces, its name may lead elsewhere. Here only plain files are read, stored or deflated, each up to
the size it announces and not a byte further.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.errors import QamError

MAX_DIRECTORY_BYTES: Final = 64 * 1024
"""Of the list of members: some hundred, far more than any file of ours has."""
MAX_HEADER: Final = 10_000
"""Characters of the header of an array."""
UNREADABLE: Final = (
    *(OSError, ValueError, EOFError, LookupError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, OverflowError, MemoryError),
)
"""What the zip module raises on damaged files, beside its own error."""

_ENDING: Final = b"PK\x05\x06"
_ENDING_SIZE: Final = 22
_WIDE_ENDING: Final = b"PK\x06\x07"
_WIDE_SIZE: Final = 20
_WIDE_FROM: Final = 2**31 - 1
"""Size from which a zip file may need an ending with wide numbers [bytes]."""
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 1
_BLOCK_BYTES: Final = 1024 * 1024


@contextmanager
def open_archive(
    source: bytes | Path, where: str, error: type[QamError]
) -> Iterator[zipfile.ZipFile]:
    """Open a zip file whose members are plain, distinct and few.

    Args:
        source: its bytes or its path.
        where: file, for the messages.
        error: class to raise.

    Yields:
        The archive; read its members with ``read_entry``.

    Raises:
        QamError: (of class ``error``) a member is a link, is encrypted, packed in another way or there
            twice, or the list of members is too long. What the zip module
            raises on damage, one of ``UNREADABLE``, is left to the caller.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        _check_ending(file, where, error)
        with zipfile.ZipFile(file) as archive:
            names: set[str] = set()
            for entry in archive.infolist():
                _check_entry(entry, where, error)
                if entry.filename in names:
                    raise error(
                        f"{where}: a member is there twice: '{entry.filename}'",
                        member=entry.filename,
                    )
                names.add(entry.filename)
            yield archive


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Bytes of a member, no more than it announces; check ``file_size`` first.

    Raises:
        BadZipFile: it is shorter than it announces, or damaged; or another of ``UNREADABLE``.
    """
    with archive.open(entry) as member:
        data = member.read(
            entry.file_size + 1
        )  # one more: at the end the sum is checked
    if len(data) != entry.file_size:
        raise zipfile.BadZipFile(
            f"'{entry.filename}' has {len(data)} bytes, announced are {entry.file_size}"
        )
    return data


def read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """Array of an npy member, never unpickling; memory is taken only for what is there.

    Raises:
        ValueError: not an array, an array of objects, or of another size than its header says; or
            another of ``UNREADABLE``, or what ``numpy.lib.format`` raises.
    """
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format {version} of '{entry.filename}' is not read")
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(member, max_header_size=MAX_HEADER)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded")
        size = dtype.itemsize
        for length in shape:
            size *= length
        there = entry.file_size - member.tell()
        if size != there or min(shape, default=0) < 0:
            raise ValueError(
                f"'{entry.filename}' has {there} bytes, its header says {shape} of {dtype}"
            )
        buffer, start = bytearray(size), 0
        while start < size and (block := member.read(min(_BLOCK_BYTES, size - start))):
            buffer[start : start + len(block)] = block
            start += len(block)
        if start < size or member.read(1):  # at the end the sum is checked
            raise ValueError(f"'{entry.filename}' is truncated")
    return np.ndarray(shape, dtype, buffer, order="F" if fortran else "C")


def _check_ending(file: Any, where: str, error: type[QamError]) -> None:
    """Refuse a long list of members before the zip module reads it whole."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _ENDING_SIZE - _WIDE_SIZE - 0xFFFF))
    tail = file.read()
    file.seek(0)
    places = {tail.rfind(_ENDING)}
    if tail[-_ENDING_SIZE:].startswith(_ENDING):
        places.add(len(tail) - _ENDING_SIZE)
    for place in places:
        if not 0 <= place <= len(tail) - _ENDING_SIZE:
            continue  # no ending: the zip module says so
        (length,) = struct.unpack_from("<L", tail, place + 12)
        wide = tail[:place][-_WIDE_SIZE:].startswith(_WIDE_ENDING)
        if length > MAX_DIRECTORY_BYTES or (wide and size <= _WIDE_FROM):
            raise error(
                f"{where}: its list of members takes {'too many' if wide else length} bytes, at "
                f"most {MAX_DIRECTORY_BYTES} are read",
                found=length,
            )


def _check_entry(entry: zipfile.ZipInfo, where: str, error: type[QamError]) -> None:
    """Refuse members that are not plain files, or unpack without a bound."""
    name = entry.filename
    mode = stat.S_IFMT(entry.external_attr >> 16)
    if name != entry.orig_filename or mode not in (0, stat.S_IFREG):
        raise error(
            f"{where}: member {entry.orig_filename!r} is a link, a folder or hides its name; only "
            "plain files are read; do not use this file",
            member=name,
        )
    if entry.compress_type not in _METHODS or entry.flag_bits & _ENCRYPTED:
        raise error(
            f"{where}: member '{name}' is encrypted or packed by method {entry.compress_type}; only "
            "stored and deflated members are read, pack it again",
            member=name,
        )
