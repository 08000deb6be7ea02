# SPDX-License-Identifier: Apache-2.0
"""The next file is read in a background thread while training works with the one before."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """At most one file ahead; what the reading raises is raised where the file is taken.

    Args:
        read: a file by its number; called in the background thread or in the caller's, so it must
            leave global state (random generators, warnings, devices) alone.
    """

    def __init__(self, read: Callable[[int], T]) -> None:
        self._read = read
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[T]] | None = None

    def begin(self, index: int) -> None:
        """Start to read a file, unless it is the one that is read ahead already."""
        if self._ahead is not None and self._ahead[0] == index:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "next file")
        self._drop()
        self._ahead = index, self._pool.submit(self._read, index)

    def take(self, index: int) -> T:
        """A file: the one read ahead, else it is read now.

        Raises:
            Exception: what reading it raised.
        """
        ahead = self._ahead
        if ahead is None or ahead[0] != index:
            self._drop()
            return self._read(index)
        self._ahead = None
        return ahead[1].result()

    def close(self) -> None:
        """Wait for the thread, drop what it read."""
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _drop(self) -> None:
        if self._ahead is not None:
            self._ahead[1].cancel()
        self._ahead = None
