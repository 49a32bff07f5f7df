"""Makes petastorm 0.13.1 work with pyarrow 26 and numpy 2.

petastorm requires pyarrow up to 14 and numpy 1, Ray a current pyarrow: without this module `import
petastorm` fails. `load_petastorm` imports it with stubs for removed modules, patches removed names
into its modules (numpy and pyarrow themselves are unchanged), and fixes two bugs:

- its thread pool could end before the last row groups were dispatched, and lost their rows;
- its unpickler executed code from the data set (`unischema_pickle`).

Not supported: HDFS, the process pool (its processes lack the bridge), `filters`, and partition
columns in the readers of petastorm; `part_file` reads the latter.
"""

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from infnet_dist.contrib.petastorm.unischema_pickle import load_unischema
from infnet_dist.errors import DataError

_HIDDEN = re.compile(r"/[._]")
_MODULES = ("petastorm", "petastorm.codecs", "petastorm.predicates", "petastorm.unischema")


@functools.cache
def load_petastorm() -> ModuleType:
    """Import and patch the package petastorm, once.

    Raises:
        DataError: petastorm, or one of its dependencies, isn't installed.
    """
    try:
        with _removed_modules():
            for name in _MODULES:
                importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"petastorm can't be imported ({error}); install it with: pip install --no-deps -r "
            "requirements/no-deps.txt"
        ) from None
    _patch_names()
    _fix_thread_pool()
    vars(sys.modules["petastorm.etl.legacy"])["restricted_loads"] = load_unischema
    vars(sys.modules["petastorm.reader"])["ProcessPool"] = _no_process_pool
    return sys.modules["petastorm"]


@contextmanager
def _removed_modules() -> Iterator[None]:
    """Stubs for removed modules of pyarrow that petastorm imports."""
    filesystem, hdfs = ModuleType("pyarrow.filesystem"), ModuleType("pyarrow.hdfs")
    filesystem.LocalFileSystem = LocalFileSystem  # type: ignore[attr-defined]
    hdfs.HadoopFileSystem = type("HadoopFileSystem", (), {})  # type: ignore[attr-defined]
    found = {module.__name__: module for module in (filesystem, hdfs)}
    sys.modules.update(found)
    try:
        yield
    finally:
        for name in found:
            del sys.modules[name]


class _Patched(ModuleType):
    """A module with additional names."""

    def __init__(self, module: ModuleType, names: dict[str, object]) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(names, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


def _patch_names() -> None:
    """Give the modules of petastorm numpy and pyarrow with the names that were removed."""
    parquet = _Patched(pq, {"ParquetDataset": LegacyDataset, "ParquetDatasetPiece": LegacyPiece})
    patched = {
        id(np): _Patched(np, {"unicode_": np.str_, "string_": np.bytes_, "in1d": np.isin}),
        id(pa): _Patched(pa, {"parquet": parquet, "localfs": LocalFileSystem()}),
        id(pq): parquet,
    }
    for name in [name for name in sys.modules if name.split(".")[0] == "petastorm"]:
        names = vars(sys.modules[name])
        for key, value in list(names.items()):
            if id(value) in patched:
                names[key] = patched[id(value)]


def _fix_thread_pool() -> None:
    """Check first that all work was dispatched, and only then that all of it is done.

    The pool checks in the opposite order and loses work that is dispatched in between.
    """
    pool = importlib.import_module("petastorm.workers_pool.thread_pool").ThreadPool
    all_done: Callable[[Any], bool] = pool.all_workers_done

    def all_workers_done(self: Any) -> bool:
        dispatched = self._ventilator is None or self._ventilator.completed()
        return dispatched and all_done(self)

    pool.all_workers_done = all_workers_done


def _no_process_pool(*_: object, **__: object) -> None:
    raise NotImplementedError(
        "petastorm's process pool starts processes that lack the bridge; set reader_pool_type to "
        "'thread' or 'dummy'"
    )


class LegacyPiece:
    """One file or row group, with the interface of `pyarrow.parquet.ParquetDatasetPiece`."""

    def __init__(
        self,
        path: str,
        open_file_func: Callable[[str], Any] = open,
        row_group: int | None = None,
        partition_keys: Sequence[object] = (),
    ) -> None:
        """Store the path; files are opened when they are read."""
        self.path = path
        self.row_group = row_group
        self.partition_keys = partition_keys
        self._open = open_file_func

    def get_metadata(self) -> pq.FileMetaData:
        """The footer."""
        with self._open(self.path) as file:
            return pq.read_metadata(file)

    def read(self, columns: Sequence[str] | None = None, partitions: object = None) -> pa.Table:
        """These columns of the row group, or of the file."""
        wanted = None if columns is None else list(columns)
        with self._open(self.path) as file:
            parquet = pq.ParquetFile(file)
            if self.row_group is None:
                return parquet.read(columns=wanted)
            return parquet.read_row_group(self.row_group, columns=wanted)


class LegacyDataset:
    """A folder of Parquet files, with the interface of the old `pyarrow.parquet.ParquetDataset`.

    Raises:
        NotImplementedError: `filters`, or folders named key=value.
    """

    partitions = None

    def __init__(
        self,
        path_or_paths: str | list[str],
        filesystem: Any = None,
        filters: object = None,
        **_: Any,
    ) -> None:
        """List the files and read the metadata of the set, if there is any."""
        if filters is not None:
            raise NotImplementedError("filters aren't supported; select rows after reading")
        self.paths = path_or_paths
        self.fs = filesystem or LocalFileSystem()
        files = (
            path_or_paths
            if isinstance(path_or_paths, list)
            else parquet_files(self.fs, path_or_paths)
        )
        if any("=" in file.split("/")[-2] for file in files):
            raise NotImplementedError(
                f"{path_or_paths} has partition folders, which the readers of petastorm don't "
                "support here; use infnet_dist.contrib.petastorm.part_file.read_petastorm_tables"
            )
        self.pieces = [LegacyPiece(file, self.fs.open) for file in files]
        self.metadata_path = f"{path_or_paths}/_metadata"
        self.metadata = self._footer("_metadata")
        self.common_metadata = self._footer("_common_metadata")

    def _footer(self, name: str) -> pq.FileMetaData | None:
        path = f"{self.paths}/{name}"
        if isinstance(self.paths, list) or not self.fs.exists(path):
            return None
        with self.fs.open(path) as file:
            return pq.read_metadata(file)


def parquet_files(filesystem: Any, path: str) -> list[str]:
    """The Parquet files below `path`, without hidden ones, sorted."""
    start = len(path.rstrip("/"))
    return sorted(
        file
        for file in filesystem.find(path)
        if file.endswith((".parquet", ".parq")) and not _HIDDEN.search(file, start)
    )
