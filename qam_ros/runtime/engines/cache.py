# SPDX-License-Identifier: Apache-2.0
"""Engines that this user built on this machine, and no others.

A serialised engine is code: whoever can write one here runs as this user. So the folder must belong
to the user and be closed to everyone else, files are opened below its handle without following links,
and an engine is handed out only with the hash that was recorded when it was built. An engine belongs
to one graph, library, GPU, driver and settings; another of any of them is another key.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from qam_ros.runtime.engines.library import EngineError, Gpu

FORMAT: Final = 1
MAX_RECORD_BYTES: Final = 64 * 1024
MAX_ENGINE_BYTES: Final = 1 << 30
SETTINGS: Final = "strongly typed, TF32 off"
"""Builder settings that go into the key; change them together."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine belongs to.

    Args:
        graph: sha256 of policy.onnx (hex); the weights are inputs and do not matter.
        library: module and version.
        gpu: name, compute capability and driver.
        settings: of the builder.
    """

    graph: str
    library: str
    gpu: Gpu
    settings: str = SETTINGS

    @property
    def name(self) -> str:
        """File name without ending."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def engine_key(onnx_bytes: bytes, library: str, version: str, gpu: Gpu) -> EngineKey:
    """Key of a graph's engine on this machine."""
    return EngineKey(
        hashlib.sha256(onnx_bytes).hexdigest(), f"{library} {version}", gpu
    )


def default_folder(environment: Mapping[str, str]) -> Path:
    """XDG_CACHE_HOME/qam/engines, or ~/.cache/qam/engines."""
    base = environment.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "qam" / "engines"


class EngineCache:
    """A folder of engines.

    Args:
        folder: created with mode 0700 where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: EngineKey) -> bytes | None:
        """The engine of a key; None: not built yet.

        Raises:
            EngineError: the folder is open to others, or the engine is not the one that was built.
        """
        with self._opened() as folder:
            record = _read(folder, f"{key.name}.json", MAX_RECORD_BYTES, self.folder)
            if record is None:
                return None
            expected = self._recorded(record, key)
            engine = _read(folder, f"{key.name}.engine", MAX_ENGINE_BYTES, self.folder)
        found = None if engine is None else hashlib.sha256(engine).hexdigest()
        if found != expected:
            raise EngineError(
                f"{self.folder / key.name}.engine: sha256 is {found}, {expected} was recorded when it was "
                "built; it was changed since. Find out by whom, then run qam compile --rebuild",
                found=found,
                expected=expected,
            )
        return engine

    def store(self, key: EngineKey, engine: bytes, build_s: float) -> None:
        """Keep an engine that was just built here.

        Args:
            key: what it belongs to.
            engine: as the library serialised it.
            build_s: how long that took [s].

        Raises:
            EngineError: the folder is open to others or cannot be written, or the engine is oversize.
        """
        if len(engine) > MAX_ENGINE_BYTES:
            raise EngineError(
                f"the engine has {len(engine)} bytes, at most {MAX_ENGINE_BYTES} are kept"
            )
        record = {
            "format_version": FORMAT,
            "key": asdict(key),
            "engine_sha256": hashlib.sha256(engine).hexdigest(),
            "engine_bytes": len(engine),
            "build_s": build_s,
        }
        with self._opened() as folder:
            text = json.dumps(record, indent=1).encode()
            try:
                _write(folder, f"{key.name}.engine", engine)
                _write(folder, f"{key.name}.json", text)
            except OSError as problem:
                raise EngineError(
                    f"{self.folder}: the engine cannot be kept: {problem.strerror}; make room, or give "
                    "another folder with --cache"
                ) from problem

    def discard(self, key: EngineKey) -> None:
        """Forget the engine of a key."""
        with self._opened() as folder:
            for ending in ("json", "engine"):
                try:
                    os.unlink(f"{key.name}.{ending}", dir_fd=folder)
                except FileNotFoundError:
                    continue
                except OSError as problem:
                    raise EngineError(
                        f"{self.folder / key.name}.{ending}: cannot be removed: {problem.strerror}"
                    ) from problem

    def _recorded(self, record: bytes, key: EngineKey) -> str:
        where = self.folder / f"{key.name}.json"
        try:
            values: Any = json.loads(record)
            expected = str(values["engine_sha256"])
            same = values["format_version"] == FORMAT and values["key"] == asdict(key)
        except (ValueError, KeyError, TypeError) as problem:
            raise EngineError(
                f"{where}: not the record of an engine ({problem!r}); run qam compile --rebuild"
            ) from problem
        if not same:
            raise EngineError(
                f"{where}: the record is of another engine: {values['key']}; run qam compile --rebuild"
            )
        return expected

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Handle of the folder, after its owner and mode were checked on that very handle."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.folder.mkdir(mode=0o700)
        except OSError as problem:
            raise EngineError(
                f"{self.folder}: the folder for engines cannot be made ({problem.strerror}); give another "
                "with --cache"
            ) from problem
        try:
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as problem:
            raise EngineError(
                f"{self.folder}: expected a folder of your own for engines, found something else "
                f"({problem.strerror}); remove it, or give another with --cache"
            ) from problem
        try:
            _check_private(os.fstat(handle), self.folder, "folder")
            yield handle
        finally:
            os.close(handle)


def _check_private(found: os.stat_result, where: Path, noun: str) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        raise EngineError(
            f"{where}: the {noun} belongs to user {found.st_uid}, expected {os.geteuid()}; an engine of "
            "another user would run his code as you. Give a folder of your own with --cache",
            found=found.st_uid,
        )
    if mode & 0o077:
        raise EngineError(
            f"{where}: the {noun} has mode {mode:04o}, others may write or read it; expected 0700 at "
            f"most. If nobody else could write there until now, run chmod go= {where}; else remove it",
            found=mode,
        )


def _read(folder: int, name: str, limit: int, where: Path) -> bytes | None:
    """Bytes of a regular file of ours in the folder; None: no such file."""
    try:
        handle = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder
        )
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise EngineError(
            f"{where / name}: not a file of this cache ({problem.strerror})"
        ) from problem
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        _check_private(status, where / name, "file")
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise EngineError(
                f"{where / name}: expected a file of at most {limit} bytes"
            )
        return file.read(limit)


def _write(folder: int, name: str, data: bytes) -> None:
    """Whole or not at all, mode 0600."""
    temporary = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    handle = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)
