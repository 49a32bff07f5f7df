"""Arrow columns without encodings, and the family that a type belongs to."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Mask = npt.NDArray[np.bool_]
# Texts that mean null in CSV, and wherever a number, a label or a time is expected.
NULL_WORDS = ("", "NaN", "nan", "NULL", "null", "None")


class UnfitColumnError(Exception):
    """A column can't be converted at all.

    Attributes:
        why: the reason, to follow the name of the column: "is timestamp[ms], expected an integer".
        row: the first such row, from 0; None if the type is the reason.
    """

    def __init__(self, why: str, row: int | None = None) -> None:
        """Store the reason."""
        super().__init__(why)
        self.why = why
        self.row = row

    def at(self, column: str, path: object, first_row: int = 0) -> str:
        """The message without the next move; `first_row` is the number of row 0 in the file."""
        row = "" if self.row is None else f" (row {first_row + self.row}, from 0)"
        return f"{path}: column {column!r} {self.why}{row}"


def plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The values without dictionaries, runs or views; text as large_string or large_binary."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(column.type, pa.BaseExtensionType):
        return plain(column.storage)
    if pa.types.is_dictionary(column.type):
        return plain(column.dictionary_decode())
    if pa.types.is_run_end_encoded(column.type):
        return plain(pc.run_end_decode(column))
    if family(column.type) == "text":
        binary = "binary" in str(column.type)
        return column.cast(pa.large_binary() if binary else pa.large_string())
    return column


def family(kind: pa.DataType) -> str:
    """The family of a type, regardless of its width: a key of `_FAMILIES`, or "other"."""
    if isinstance(kind, pa.BaseExtensionType):
        return family(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return family(kind.value_type)
    return next((name for name, tests in _FAMILIES.items() if any(t(kind) for t in tests)), "other")


_FAMILIES = {
    "null": (pa.types.is_null,),
    "bool": (pa.types.is_boolean,),
    "integer": (pa.types.is_integer,),
    "float": (pa.types.is_floating,),
    "decimal": (pa.types.is_decimal,),
    "timestamp": (pa.types.is_timestamp,),
    "date": (pa.types.is_date,),
    "text": (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    ),
    "list": (
        *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
        *(pa.types.is_list_view, pa.types.is_large_list_view),
    ),
}


def list_items(values: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The items of lists of any layout, in order, and the length of each row; 0 for null."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    items = values.flatten()
    assert len(items) == lengths.sum()
    return items, lengths.astype(np.int64)


def as_vectors(lists: pa.ListArray, dim: int) -> pa.FixedSizeListArray:
    """Lists of float32 as vectors; null where a list is null or of another size."""
    items, lengths = list_items(lists)
    fits = mask(pc.is_valid(lists)) & (lengths == dim)
    if not fits.all():
        filled = np.zeros((len(lists), dim), np.float32)
        kept = pc.fill_null(items, 0.0).to_numpy()[np.repeat(fits, lengths)]
        filled[fits] = kept.reshape(-1, dim)
        items = pa.array(filled.ravel())
    return pa.FixedSizeListArray.from_arrays(items, dim, mask=pa.array(~fits))


def utf8(values: pa.Array) -> tuple[pa.Array, Mask]:
    """Text as large_string, null where bytes aren't UTF-8; and the mask of those."""
    texts = values.view(pa.large_string()) if pa.types.is_large_binary(values.type) else values
    try:
        texts.validate(full=True)
        return texts, np.zeros(len(texts), bool)
    except pa.ArrowInvalid:
        unfit = np.array([not _is_utf8(value.as_py()) for value in texts.cast(pa.large_binary())])
        return only(texts, ~unfit), unfit


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def without_null_words(texts: pa.Array) -> pa.Array:
    """Texts without surrounding blanks, null for the `NULL_WORDS`."""
    texts = pc.utf8_trim_whitespace(texts)
    null = pc.is_in(texts, pa.array(NULL_WORDS, texts.type))
    return only(texts, ~mask(null)) if pc.any(null).as_py() else texts


def only(values: pa.Array, kept: Mask) -> pa.Array:
    """The values, null where `kept` is false."""
    return pc.if_else(pa.array(kept), values, pa.scalar(None, values.type))


def mask(values: pa.Array) -> Mask:
    """A bool array of Arrow as a numpy array, null as False."""
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)


def shown(value: pa.Scalar) -> str:
    """A value as text for messages, including values that Python can't represent."""
    try:
        found = value.as_py()
    except UnicodeDecodeError:
        return "bytes that aren't UTF-8"
    except (OverflowError, ValueError):  # a time outside the years 1 to 9999
        return f"{value.cast(pa.int64()).as_py()} ({value.type})"
    if found is None:
        return "empty"
    if isinstance(found, bytes):
        found = readable(found)
    return f"{found:g}" if isinstance(found, float) else str(found)[:40]


def readable(value: bytes) -> str:
    r"""Bytes as text, with escapes such as \\xf6 for bytes that aren't UTF-8."""
    return value.decode("utf-8", "backslashreplace")
