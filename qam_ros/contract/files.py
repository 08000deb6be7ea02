# SPDX-License-Identifier: Apache-2.0
"""Files of the contract: written whole or not at all, read with limits and without pickle."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from qam_ros.contract.archives import UNREADABLE, open_archive, read_array
from qam_ros.contract.errors import QamError

_BLOCK_BYTES: Final = 1024 * 1024
_BAD_HEADER: Final = (SyntaxError, TypeError, tokenize.TokenError, Warning)
"""What numpy raises on the header of an array, beside ValueError."""


def sha256_file(path: Path) -> str:
    """Sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_directory(
    path: Path, error: type[QamError], *, replace: bool
) -> Iterator[Path]:
    """Fill a directory under a temporary name, then rename it: what is there is whole.

    Args:
        path: final path.
        error: class to raise.
        replace: take the place of an existing directory.

    Yields:
        The temporary directory, on the same file system.

    Raises:
        QamError: (of class ``error``) the path exists and ``replace`` is not set.
    """
    check_free(path, error, replace=replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private
        yield temporary
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: Path, error: type[QamError], *, replace: bool) -> Iterator[Path]:
    """Write a file under a temporary name, then rename it.

    Args:
        path: final path.
        error: class to raise.
        replace: take the place of an existing file.

    Yields:
        The temporary path, on the same file system.

    Raises:
        QamError: (of class ``error``) the path exists and ``replace`` is not set.
    """
    check_free(path, error, replace=replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_free(path: Path, error: type[QamError], *, replace: bool) -> None:
    """Refuse to write over something.

    Raises:
        QamError: (of class ``error``) the path exists and ``replace`` is not set.
    """
    if path.exists() and not replace:
        raise error(
            f"{path}: already exists; remove it or choose another path", path=str(path)
        )


def read_bounded(path: Path, limit: int, error: type[QamError]) -> bytes:
    """Bytes of a file that must not be larger than a limit.

    Args:
        path: the file; a link is refused.
        limit: largest size accepted [bytes].
        error: class to raise.

    Raises:
        QamError: (of class ``error``) missing, not a plain file, too large, or not to be read.
    """
    if path.is_symlink() or not path.is_file():
        raise error(
            f"{path}: no such file (links do not count); check the path", path=str(path)
        )
    try:
        # Looked at once it is open, so that no other file can take its place in between.
        with open(
            os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb"
        ) as file:
            status = os.fstat(file.fileno())
            plain, data = stat.S_ISREG(status.st_mode), file.read(limit + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem}", path=str(path)) from problem
    size = max(status.st_size, len(data))
    if not plain or size > limit:
        raise error(
            f"{path}: {size} bytes, at most {limit} are read", found=size, limit=limit
        )
    return data


def read_npz(
    source: bytes | Path, limit: int, where: str, error: type[QamError]
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an npz file, never unpickling.

    Args:
        source: its bytes or its path.
        limit: largest total size after decompression [bytes].
        where: file, for the message.
        error: class to raise.

    Raises:
        QamError: (of class ``error``) not an npz, truncated, too large, or holding objects.
    """
    try:
        with open_archive(source, where, error) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > limit:
                raise error(
                    f"{where}: unpacks to {size} bytes, at most {limit} are read",
                    found=size,
                )
            return {
                entry.filename.removesuffix(".npy"): read_array(archive, entry)
                for entry in entries
            }
    except (*UNREADABLE, *_BAD_HEADER) as problem:
        raise error(
            f"{where}: not a readable npz file ({problem}); it is truncated or damaged, "
            "make or copy it again"
        ) from problem
