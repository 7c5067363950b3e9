"""Where a download grows, and how it becomes a model of the store.

A directory per model, on the file system of the store, so that moving in is a rename. It lies outside of
the store, in a place of ours, where that is on the same disk: a daemon that may write its store then shares
no file with the process that talks to a registry. Else it is `.pulling` in the store: neither Ollama, which
sweeps its blobs for unfinished files, nor anything that lists models looks there. The jailed process may
write here and nowhere else, so nothing here is believed: files are opened without following links, once that
process has gone, hashed, and only then moved in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from ollama_adapter.core import gguf
from ollama_adapter.core.names import ModelName
from ollama_adapter.core.registry import (
    MAX_MANIFEST_BYTES,
    Blob,
    Manifest,
    check_config,
    decode_journal,
)
from ollama_adapter.errors import PullFailed
from ollama_adapter.system.store import UNWRITABLE_HINT, Layout

DIRECTORY: Final = ".pulling"
JOURNAL: Final = ".journal"
KEY_LENGTH: Final = 24
CHUNK: Final = 1 << 20


class Staging:
    """The staged files of one model. What is in it survives us, unless `remove` is called."""

    def __init__(self, layout: Layout, name: ModelName, ours: Path | None = None) -> None:
        self._layout = layout
        self._name = name
        home = layout.blobs.resolve().parent  # `blobs` may be a link
        of = f"{home}\n{name.key}".encode("utf-8", "surrogateescape")
        key = hashlib.sha256(of).hexdigest()[:KEY_LENGTH]
        self._base = ours if ours and _same_disk(ours, home) else home / DIRECTORY
        self.directory = self._base / key
        self._lock_file = self._base / f"{key}.lock"
        self._lock = -1

    def __repr__(self) -> str:
        return f"<Staging of {self._name}{' locked' if self._lock >= 0 else ''}>"

    def acquire(self) -> bool:
        """Make it, and make it ours; False where another process has it. Raises PullFailed."""
        try:
            self._layout.check_writable()
            self._base.mkdir(parents=True, exist_ok=True, mode=0o755)
            fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(fd), os.stat(self._lock_file)):
                raise FileNotFoundError  # it was removed by whoever had it
            self.directory.mkdir(exist_ok=True, mode=0o700)
        except (BlockingIOError, FileNotFoundError):
            os.close(fd)
            return False
        except OSError as error:
            os.close(fd)
            raise self._unwritable(error) from error
        self._lock = fd
        return True

    def release(self) -> None:
        """Others may go on with it. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def remove(self) -> None:
        """It has become a model, or is worth nothing."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self._lock_file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._base.rmdir()  # only where nothing else is in it

    def tidy(self) -> None:
        """Remove it where nothing has come that a next pull could go on with."""
        with contextlib.suppress(OSError):
            journals = self.directory.glob(f"*{JOURNAL}")
            if not any(each.lstat().st_size for each in journals):
                self.remove()

    # While it grows

    def is_in_store(self, blob: Blob) -> bool:
        with contextlib.suppress(OSError):
            return self._layout.blob(blob.digest).stat().st_size == blob.size
        return False

    def begun(self, blob: Blob) -> int:
        """How many bytes of it can be built on."""
        try:
            with self._open(blob.file) as file, self._open(blob.file + JOURNAL) as journal:
                written = os.fstat(file.fileno()).st_size
                return decode_journal(journal.read(64), written, blob.size)
        except (OSError, PullFailed):
            return 0

    def manifest(self, file: str) -> bytes:
        """What was fetched as one. Raises PullFailed."""
        try:
            with self._open(file) as manifest:
                return manifest.read(MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise self._unwritable(error) from error

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.directory).free

    # When it has come

    def settle(self, manifest: Manifest, blob: Blob) -> None:
        """Check a whole blob and move it into the store. Raises PullFailed, InvalidModelFile and others.

        Call it in a thread, when nobody else can write here. What is wrong is thrown away.
        """
        try:
            with self._open(blob.file) as file:
                self._check(manifest, blob, file)
                if os.geteuid() == 0:  # it was another user's until now
                    owner = self._layout.blobs.stat()
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error
        except Exception:
            self._discard(blob)
            raise
        self._move_in(blob)

    def publish(self, raw: bytes) -> None:
        """The manifest, last of all: from now on there is a model. Raises PullFailed."""
        try:
            self._layout.write_manifest(self._name, raw)
            path = self._layout.manifest(self._name)
            for each in (self._layout.blobs, *([path, path.parent] if path else [])):
                _sync(each)
        except OSError as error:
            raise self._unwritable(error) from error

    def _check(self, manifest: Manifest, blob: Blob, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if size != blob.size:
            raise PullFailed(f"{size:,} bytes came of a file of {blob.size:,}")
        seen = hashlib.sha256()
        while chunk := file.read(CHUNK):
            seen.update(chunk)
        if f"sha256:{seen.hexdigest()}" != blob.digest:
            raise PullFailed(
                f"what came is not {blob.digest[:19]}…: its SHA-256 is another one",
                hint="it was thrown away: pull again, and if it goes on, the registry is at fault",
            )
        if blob == manifest.config:
            file.seek(0)
            check_config(file.read(), str(self._name))
        if blob in manifest.models:
            with _mapped(file, size) as data:
                gguf.parse(data)

    def _move_in(self, blob: Blob) -> None:
        source, target = self.directory / blob.file, self._layout.blob(blob.digest)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise self._unwritable(error) from error
            with self._layout.temporary_blob() as copy:  # `blobs` is a disk of its own
                shutil.copyfile(source, copy)
                copy.replace(target)
        (self.directory / (blob.file + JOURNAL)).unlink(missing_ok=True)

    def _discard(self, blob: Blob) -> None:
        for each in (blob.file, blob.file + JOURNAL):
            (self.directory / each).unlink(missing_ok=True)

    def _open(self, name: str) -> BinaryIO:
        """A plain file of the directory's own. Raises OSError, PullFailed for what else it may be."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = open(os.open(self.directory / name, flags), "rb")  # noqa: SIM115 - the caller's
        about = os.fstat(file.fileno())
        if stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
            return file
        file.close()
        raise PullFailed("a staged file is not what was written there")

    def _unwritable(self, error: OSError) -> PullFailed:
        return PullFailed(self._layout.unwritable(error), hint=UNWRITABLE_HINT)


@contextlib.contextmanager
def _mapped(file: BinaryIO, size: int) -> Iterator[gguf.Buffer]:
    if not size:
        yield b""
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _same_disk(one: Path, other: Path) -> bool:
    """Where they are, or would be made."""
    there = [next(p for p in (each, *each.parents) if p.exists()) for each in (one, other)]
    return there[0].stat().st_dev == there[1].stat().st_dev


def _sync(path: Path) -> None:
    """On the disk, for good."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
