"""Lists the files at a path: each file once; and files that aren't read, with the reason.

Links are followed. Local files and folders are identified by device and inode, so those with
several names (links, hard links, loops of links) are read once; on other storage a path identifies
a file. Of several files with the same bytes only one is read.
"""

import hashlib
import logging
import os
import re
import stat
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from infnet_dist.data.manifest import LogFile

PARQUET = (".parquet", ".parq", ".pq")
PACKED = (".gz", ".zst", ".bz2", ".lz4")
CSV = tuple(f".{text}{packed}" for text in ("csv", "tsv") for packed in ("", *PACKED))
_HIDDEN = "its name begins with . or _"
_RECENT = "it changed less than ingest.min_age_s ago"
_END_BYTES = 1 << 16  # of the beginning and end of a file, compared before all of it
_BLOCK_BYTES = 1 << 20
_AT_ONCE = 16
_NAMED = 10  # files per log line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The files at a path.

    Attributes:
        files: files to read, sorted by path.
        left_out: reasons by path of files (and hidden folders) that aren't read.
        unreadable: reasons by path of files that can't be read.
    """

    files: list[LogFile]
    left_out: dict[str, str]
    unreadable: dict[str, str]

    def without(self, folder: Path, why: str) -> "Listing":
        """The listing without local files below a folder."""
        inside = {f.path for f in self.files if Path(f.path).resolve().is_relative_to(folder)}
        files = [file for file in self.files if file.path not in inside]
        return Listing(files, self.left_out | dict.fromkeys(inside, why), self.unreadable)

    def without_recent(self, since_ns: int, known: Sequence[LogFile]) -> "Listing":
        """The listing without files that aren't known and changed after a time (epoch ns)."""
        names = {file.path for file in known}
        recent = {f.path for f in self.files if f.modified_ns > since_ns and f.path not in names}
        files = [file for file in self.files if file.path not in recent]
        return Listing(files, self.left_out | dict.fromkeys(recent, _RECENT), self.unreadable)

    @property
    def recent(self) -> list[str]:
        """Files that `without_recent` left out."""
        return [path for path, why in self.left_out.items() if why == _RECENT]


@dataclass(frozen=True)
class _Entry:
    """A file, or a folder that isn't entered.

    Attributes:
        path: path of the file.
        key: identity of the file, equal for all its names.
        is_linked: whether the path contains a link.
        problem: reason if it can't be read.
        skipped: reason if it is left out regardless of its ending.
    """

    path: str
    key: object = None
    size: int = 0
    modified_ns: int = 0
    is_linked: bool = False
    problem: str | None = None
    skipped: str | None = None

    @property
    def file(self) -> LogFile:
        return LogFile(path=self.path, size=self.size, modified_ns=self.modified_ns)


def list_place(
    filesystem: pa.fs.FileSystem,
    root: str,
    suffixes: Sequence[str],
    known: Sequence[LogFile] = (),
) -> Listing:
    """The files at a path: a file, all below a folder, or those that match a pattern with `*`.

    Args:
        filesystem: filesystem of the path.
        root: absolute path; `*` matches any text, including `/`.
        suffixes: endings of the files to read, in any case; ignored for a single file.
        known: files that were read before; a file with several names keeps its known one.

    Raises:
        FileNotFoundError: the path doesn't exist.
        OSError: a folder can't be listed.
    """
    folder = root if "*" not in root else root[: root.index("*")].rpartition("/")[0]
    info = filesystem.get_file_info(folder)
    if info.type == pa.fs.FileType.NotFound:
        raise FileNotFoundError(folder)
    is_local = isinstance(filesystem, pa.fs.LocalFileSystem)
    if info.type != pa.fs.FileType.Directory:
        entry = _local_entry(folder) if is_local else _remote_entry(info)
        problems = {folder: entry.problem} if entry.problem else {}
        return Listing([] if problems else [entry.file], {}, problems)
    matches = re.compile(".*".join(map(re.escape, root.split("*"))), re.DOTALL).fullmatch
    entries = _walk(folder) if is_local else _select(filesystem, folder)
    choice = _Choice(suffixes)
    for entry in entries:
        if "*" not in root or matches(entry.path):
            choice.add(entry)
    identity = _identity if is_local else str
    chosen = _each_once(choice.chosen, known, identity, choice.left_out)
    chosen = _without_copies(filesystem, chosen, known, choice.left_out)
    files = sorted((entry.file for entry in chosen), key=lambda file: file.path)
    return Listing(files, dict(sorted(choice.left_out.items())), choice.unreadable)


def log_left_out(left_out: dict[str, str]) -> None:
    """Log hidden and recent files, and warn of other files that aren't read."""
    expected = {_HIDDEN: "the name begins with . or _", _RECENT: "changed a moment ago"}
    others = [f"{path} ({why})" for path, why in left_out.items() if why not in expected]
    for reason, text in expected.items():
        if found := [path for path, why in left_out.items() if why == reason]:
            log.info("not read, because %s: %s", text, some(found))
    if others:
        log.warning("not read: %s", some(others))


def some(names: Sequence[str]) -> str:
    """The names, or the first ones and the number of the others."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


@dataclass
class _Choice:
    """Separates entries to read from those to leave out."""

    suffixes: Sequence[str]
    chosen: list[_Entry] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, entry: _Entry) -> None:
        if entry.skipped is not None:
            self.left_out[entry.path] = entry.skipped
        elif not entry.path.lower().endswith(tuple(self.suffixes)):
            self.left_out[entry.path] = f"its ending is none of {', '.join(self.suffixes)}"
        elif entry.problem is not None:
            self.unreadable[entry.path] = entry.problem
        else:
            self.chosen.append(entry)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _walk(root: str) -> Iterator[_Entry]:
    """All entries below a local folder, each folder once; links are followed last."""
    seen = {_identity(str(parent)): str(parent) for parent in Path(root).resolve().parents}
    real, links = deque([root]), deque[str]()
    while real or links:
        is_link = not real
        folder = (real or links).popleft()
        first = seen.setdefault(_identity(folder), folder)
        if first != folder:
            yield _Entry(folder, skipped=f"the same folder as {first}")
            continue
        with os.scandir(folder) as scan:
            found = sorted(scan, key=lambda entry: entry.name)
        for entry in found:
            if _is_hidden(entry.name):
                yield _Entry(entry.path, skipped=_HIDDEN)
            elif os.path.isdir(entry.path):
                (links if entry.is_symlink() or is_link else real).append(entry.path)
            else:
                yield _local_entry(entry.path, is_linked=is_link)


def _local_entry(path: str, *, is_linked: bool = False) -> _Entry:
    try:
        found = os.stat(path)
    except OSError as error:  # a broken link or a loop
        return _Entry(path, problem=f"its link leads nowhere: {error.strerror}")
    if not stat.S_ISREG(found.st_mode):
        return _Entry(path, problem="it isn't a regular file")
    return _Entry(
        path,
        (found.st_dev, found.st_ino),
        found.st_size,
        found.st_mtime_ns,
        is_linked or os.path.islink(path),
    )


def _identity(path: str) -> object:
    """Device and inode of a path; the path itself if it doesn't exist."""
    try:
        found = os.stat(path)
    except OSError:
        return path
    return found.st_dev, found.st_ino


def _select(filesystem: pa.fs.FileSystem, folder: str) -> Iterator[_Entry]:
    """All files below a folder of a remote filesystem; hidden folders as one entry."""
    hidden = set[str]()
    for info in filesystem.get_file_info(pa.fs.FileSelector(folder, recursive=True)):
        if info.type == pa.fs.FileType.Directory:
            continue
        below = info.path.removeprefix(folder)
        parts = below.split("/")
        depth = next((i for i, part in enumerate(parts) if _is_hidden(part)), None)
        if depth is None:
            yield _remote_entry(info)
        else:
            hidden.add(info.path.removesuffix(below) + "/".join(parts[: depth + 1]))
    yield from (_Entry(path, skipped=_HIDDEN) for path in sorted(hidden))


def _remote_entry(info: pa.fs.FileInfo) -> _Entry:
    problem = None if info.is_file else "it isn't a regular file"
    return _Entry(info.path, info.path, info.size or 0, info.mtime_ns or 0, problem=problem)


def _each_once(
    entries: Iterable[_Entry],
    known: Sequence[LogFile],
    identity: Callable[[str], object],
    left_out: dict[str, str],
) -> list[_Entry]:
    """One entry per file: its known name, otherwise the first one that isn't a link."""
    names = {identity(file.path): file.path for file in known}
    _warn_of_files_read_twice(known, [identity(file.path) for file in known])
    groups = defaultdict[object, list[_Entry]](list)
    for entry in entries:
        groups[entry.key].append(entry)
    chosen = []
    for key, group in groups.items():
        best = min(group, key=lambda entry: (entry.is_linked, entry.path))
        path = names.get(key, best.path)
        chosen.append(_Entry(path, key, best.size, best.modified_ns, best.is_linked))
        for entry in group:
            if entry.path not in (path, best.path):
                left_out[entry.path] = f"the same file as {path}"
    return chosen


def _warn_of_files_read_twice(known: Sequence[LogFile], keys: Sequence[object]) -> None:
    """Warn of files that earlier versions have read under several names."""
    first: dict[object, str] = {}
    pairs = [
        (file.path, first.setdefault(key, file.path)) for file, key in zip(known, keys, strict=True)
    ]
    if twice := [f"{path} (the same file as {other})" for path, other in pairs if path != other]:
        log.warning(
            "the training set contains the rows of %s file(s) more than once, because an earlier "
            "version read them under several names: %s; ingest again into another data.path",
            f"{len(twice):,}",
            some(twice),
        )


def _without_copies(
    filesystem: pa.fs.FileSystem,
    entries: Sequence[_Entry],
    known: Sequence[LogFile],
    left_out: dict[str, str],
) -> list[_Entry]:
    """One entry per content: compares files of equal size, first by their ends."""
    names = {file.path for file in known}
    ranked = sorted(entries, key=lambda e: (e.path not in names, e.is_linked, e.path))
    ranked = [entry for entry in ranked if entry.size]
    groups = _alike(ranked, [entry.size for entry in ranked], names)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for digest in (_digest_of_ends, _digest):
            alike = [entry for group in groups for entry in group]
            digests = list(pool.map(partial(_digest_or_path, filesystem, digest), alike))
            groups = _alike(alike, digests, names)
    copies = {
        entry.path: group[0].path
        for group in groups
        for entry in group[1:]
        if entry.path not in names
    }
    left_out |= {path: f"a copy of {of}: the same bytes" for path, of in copies.items()}
    return [entry for entry in entries if entry.path not in copies]


def _alike(
    entries: Sequence[_Entry], marks: Sequence[object], known: set[str]
) -> list[list[_Entry]]:
    """Groups of two or more entries with equal marks, unless all of a group are known."""
    groups = defaultdict[object, list[_Entry]](list)
    for entry, mark in zip(entries, marks, strict=True):
        groups[mark].append(entry)
    return [
        group
        for group in groups.values()
        if len(group) > 1 and not known.issuperset(entry.path for entry in group)
    ]


def _digest_or_path(
    filesystem: pa.fs.FileSystem,
    digest: Callable[[pa.fs.FileSystem, _Entry], bytes],
    entry: _Entry,
) -> bytes:
    """The digest; for unreadable files the path, which is unique."""
    try:
        return digest(filesystem, entry)
    except OSError:
        return os.fsencode(entry.path)


def _digest_of_ends(filesystem: pa.fs.FileSystem, entry: _Entry) -> bytes:
    """Digest of the size, the first bytes and the last ones."""
    found = hashlib.blake2b(entry.size.to_bytes(8))
    with filesystem.open_input_file(entry.path) as file:
        found.update(file.read(_END_BYTES))
        file.seek(max(entry.size - _END_BYTES, 0))
        found.update(file.read(_END_BYTES))
    return found.digest()


def _digest(filesystem: pa.fs.FileSystem, entry: _Entry) -> bytes:
    """Digest of all bytes."""
    found = hashlib.blake2b()
    with filesystem.open_input_file(entry.path) as file:
        while block := file.read(_BLOCK_BYTES):
            found.update(block)
    return found.digest()
