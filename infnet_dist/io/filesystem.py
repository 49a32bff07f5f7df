"""Files at a path or a URL: the same interface for local disks, S3, and all of Arrow and fsspec."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.fs
from typing_extensions import Buffer

from infnet_dist.errors import UserError
from infnet_dist.io.urls import without_secrets


def open_filesystem(path: str) -> tuple[pa.fs.FileSystem, str]:
    """The filesystem of a path or URL, and the path in it.

    Raises:
        UserError: the scheme is unknown, or the service can't be reached.
    """
    if "://" not in path:
        return pa.fs.LocalFileSystem(), str(Path(path).absolute())
    try:
        return pa.fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError):  # not a scheme of Arrow
        try:
            filesystem, root = fsspec.core.url_to_fs(path)
        except (ValueError, ImportError, OSError) as error:
            shown = without_secrets(path)
            # The reason may repeat the URL, or parts of it.
            reason = " ".join(str(error).split()) if shown == path else type(error).__name__
            raise UserError(f"{shown} can't be opened ({reason})") from None
        return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem)), root


class Folder:
    """A folder on any filesystem; `folder / "name"` is a folder in it. Cheap to create and pickle.

    Args:
        url: a path or a URL; needn't exist.
    """

    def __init__(self, url: "str | Path | Folder") -> None:
        self.url: str = url.url if isinstance(url, Folder) else str(url)
        self._opened: tuple[pa.fs.FileSystem, str] | None = None

    def __str__(self) -> str:
        """The URL without possible secrets: user, password and options."""
        return without_secrets(self.url)

    def __repr__(self) -> str:
        return f"Folder({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name: str) -> "Folder":
        path, mark, options = self.url.partition("?")
        below = Folder(f"{path.rstrip('/')}/{name}{mark}{options}")
        if self._opened:
            below._opened = self._opened[0], f"{self._opened[1].rstrip('/')}/{name}"
        return below

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_opened": None}

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.url.partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "Folder":
        """The parent folder."""
        path, mark, options = self.url.partition("?")
        return Folder(f"{path.rstrip('/').rpartition('/')[0]}{mark}{options}")

    def entries(self) -> dict[str, int | None]:
        """The entries of the folder: size by name of a file, None for a folder.

        Raises:
            OSError: it can't be listed; a missing folder has no entries.
        """
        filesystem, root = self._filesystem()
        selector = pa.fs.FileSelector(root, allow_not_found=True)
        return {
            info.base_name: info.size if info.type == pa.fs.FileType.File else None
            for info in filesystem.get_file_info(selector)
        }

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it doesn't exist."""
        filesystem, root = self._filesystem()
        (info,) = filesystem.get_file_info([f"{root}/{name}"])
        return info.size if info.type == pa.fs.FileType.File else None

    def modified_ns(self, name: str) -> int:
        """Time of the last change of a file; 0 if the storage has none."""
        filesystem, root = self._filesystem()
        (info,) = filesystem.get_file_info([f"{root}/{name}"])
        return info.mtime_ns or 0

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            OSError: it doesn't exist or can't be read.
        """
        with self.open(name) as file:
            content = file.read()
        assert isinstance(content, bytes)
        return content

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for random access, with `seek` and `readinto`.

        Raises:
            OSError: it doesn't exist, can't be read, or isn't a regular file: a pipe would block.
        """
        filesystem, root = self._filesystem()
        if isinstance(filesystem, pa.fs.LocalFileSystem):
            place = f"{root}/{name}"
            if not stat.S_ISREG(os.stat(place).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", place)
        with filesystem.open_input_file(f"{root}/{name}") as file:
            yield file

    def create(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        """Create or replace a file with the output of `write`, synced to disk."""
        filesystem, root = self._filesystem()
        if not isinstance(filesystem, pa.fs.LocalFileSystem):
            with filesystem.open_output_stream(f"{root}/{name}") as stream:
                write(stream)
            return
        os.makedirs(root, exist_ok=True)
        with open(f"{root}/{name}", "wb", buffering=0) as file:
            write(file)
            os.fsync(file.fileno())

    def put(self, name: str, content: bytes) -> None:
        """Create or replace a small file atomically: others see the old or the new content."""
        self.create_whole(name, lambda file: write_all(file, content))

    def create_whole(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        """As `create`, but atomic: others see the old file or the new one, never a part.

        On object stores, where renaming isn't cheap, a failure may delete the file.
        """
        filesystem, root = self._filesystem()
        if isinstance(filesystem, pa.fs.LocalFileSystem):
            with published(Path(root) / name) as partial:
                self.create(partial.name, write)
            return
        try:
            self.create(name, write)
        except BaseException:
            with suppress(OSError):
                self.delete(name)
            raise

    def check_target(self, name: str) -> None:
        """Check before the work that a file of this name can be created or replaced.

        Raises:
            UserError: names the obstacle.
        """
        filesystem, root = self._filesystem()
        if not name:
            raise UserError(f"{self} is a folder; name a file in it")
        (info,) = filesystem.get_file_info([f"{root}/{name}"])
        if info.type == pa.fs.FileType.Directory:
            raise UserError(f"{self / name} is a folder; name a file in it")
        if info.type == pa.fs.FileType.Unknown:
            raise UserError(f"{self / name} isn't a regular file; name another one")
        if isinstance(filesystem, pa.fs.LocalFileSystem):
            there = _first_that_exists(Path(root))
            if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
                raise UserError(
                    f"{self / name} can't be written: {there} isn't a writable folder; name "
                    "another path"
                )

    @property
    def is_link(self) -> bool:
        """Whether the folder itself is a link on a local disk."""
        filesystem, root = self._filesystem()
        return isinstance(filesystem, pa.fs.LocalFileSystem) and os.path.islink(root.rstrip("/"))

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""
        filesystem, root = self._filesystem()
        if self.size(name) is not None:
            filesystem.delete_file(f"{root}/{name}")

    def delete_all(self) -> None:
        """Delete the folder and everything in it, if it exists.

        Raises:
            OSError: a part can't be deleted; everything else is.
        """
        filesystem, root = self._filesystem()
        if isinstance(filesystem, pa.fs.LocalFileSystem):
            _delete_tree(root)
        elif filesystem.get_file_info([root])[0].type == pa.fs.FileType.Directory:
            filesystem.delete_dir(root)

    def _filesystem(self) -> tuple[pa.fs.FileSystem, str]:
        if self._opened is None:
            self._opened = open_filesystem(self.url)
        return self._opened


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to; renamed to `path` at the end, deleted on failure.

    So `path` is complete or absent, also after a loss of power.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync_folder(str(path.parent))


@contextmanager
def published_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to fill; synced and renamed to `path` at the end.

    So `path` is complete or absent. The new folder is deleted on failure.

    Raises:
        UserError: `path` exists, or can't be made.
    """
    if path.exists():
        raise UserError(f"{path} already exists; name another folder, or delete it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    except OSError as error:
        raise UserError(f"{path} can't be made ({error.strerror}); name another folder") from None
    try:
        partial.chmod(0o755)  # mkdtemp allows its owner alone
        yield partial
        for file in partial.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        _sync_folder(str(partial))
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(str(path.parent))


def _delete_tree(path: str) -> None:
    """As `shutil.rmtree`, but continues after an error and raises the first one at the end."""
    errors: list[OSError] = []

    def collect(function: object, path: str, info: tuple[Any, Any, Any]) -> None:
        if not isinstance(info[1], FileNotFoundError):
            errors.append(OSError(info[1].errno, info[1].strerror, path))  # the full path

    shutil.rmtree(path, onerror=collect)
    if errors:
        raise errors[0]


def _first_that_exists(path: Path) -> Path:
    return next((place for place in (path, *path.parents) if place.exists()), path)


def size_text(size: float) -> str:
    """A size in bytes as readable text, e.g. `1.5 GiB`."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}"


def write_all(file: IO[bytes], content: Buffer) -> None:
    """Write all bytes; an unbuffered file may write only some of them per call."""
    view = memoryview(content).cast("B")
    while view:
        view = view[file.write(view) or len(view) :]


def _sync_folder(path: str) -> None:
    """Sync a folder, so that a rename survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
