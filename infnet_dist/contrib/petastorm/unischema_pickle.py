"""Loads a pickled Unischema without executing code from the pickle.

Petastorm stores the description of a data set as a pickle beside the rows. Plain unpickling
executes any code in it; the restricted unpickler of petastorm allows all of `builtins`, including
`eval`. Here only the few names that a Unischema consists of are allowed.
"""

import builtins
import collections
import decimal
import importlib
import io
import pickle
from typing import Any, ClassVar

import numpy as np

_PETASTORM = {
    "petastorm.unischema": ("Unischema", "UnischemaField"),
    "petastorm.codecs": (
        "CompressedImageCodec",
        "CompressedNdarrayCodec",
        "NdarrayCodec",
        "ScalarCodec",
    ),
}
# Python 2 had other names for two of the modules, and its pickles still exist.
_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("decimal", "Decimal"): decimal.Decimal,
    **{
        ("builtins", name): getattr(builtins, name)
        for name in ("bool", "bytes", "float", "int", "object", "str", "tuple")
    },
}
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_OLD_NUMPY = {"unicode_": np.str_, "string_": np.bytes_, "bool8": np.bool_}


class SparkType:
    """Placeholder for a type of pyspark, which only writing with Spark needs."""

    def __init__(self, *arguments: object) -> None:
        """Store the arguments of the type, e.g. the precision of a decimal."""
        self.arguments = arguments


def load_unischema(data: bytes) -> Any:
    """Load the Unischema in a pickle.

    Raises:
        pickle.UnpicklingError: the pickle uses a name that no Unischema needs, or is corrupt.
    """
    try:
        found = _Unpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise pickle.UnpicklingError(f"damaged ({type(error).__name__}: {error})") from None
    unischema = importlib.import_module("petastorm.unischema")
    if not isinstance(found, unischema.Unischema):
        raise pickle.UnpicklingError(f"contains {type(found).__name__}, expected a Unischema")
    return found


# The Python version: the C version allocates memory by sizes in the data and has no hooks for
# calls.
_Base: Any = pickle._Unpickler


class _Unpickler(_Base):
    dispatch: ClassVar = dict(_Base.dispatch)

    def load_reduce(self) -> None:
        """Call the function on the stack; rejects e.g. `tuple(bytes(10**10))`."""
        if not _is_called(self.stack[-2]):
            raise pickle.UnpicklingError(f"calls {self.stack[-2]!r}, which no Unischema needs")
        super().load_reduce()

    def load_newobj(self) -> None:
        """Create an object."""
        if not _is_made(self.stack[-2]):
            raise pickle.UnpicklingError(f"makes a {self.stack[-2]!r}, which no Unischema needs")
        super().load_newobj()

    def reject(self) -> None:
        """Reject opcodes that no pickled Unischema uses."""
        raise pickle.UnpicklingError("uses an opcode that no Unischema needs")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    for _code in (
        *(pickle.NEWOBJ_EX, pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
        *(pickle.PERSID, pickle.BINPERSID),
    ):
        dispatch[_code[0]] = reject

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name in the pickle.

        Raises:
            pickle.UnpicklingError: no Unischema needs the name.
        """
        module = _RENAMED.get(module, module)
        if name in _PETASTORM.get(module, ()):
            return getattr(importlib.import_module(module), name)
        if (module, name) == ("copyreg", "_reconstructor"):
            return _reconstructor
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module == "numpy":
            found = _OLD_NUMPY.get(name, getattr(np, name, None))
            if isinstance(found, type) and issubclass(found, np.generic | np.dtype):
                return found
        if module == "pyspark.sql.types" and name.isidentifier() and name.endswith("Type"):
            return type(name, (SparkType,), {})
        if (module, name) == ("pyspark.serializers", "_restore"):
            return _restore
        raise pickle.UnpicklingError(
            f"names {module[:100]}.{name[:100]}, which no Unischema needs: not opened, since it "
            "might run code"
        )


def _reconstructor(kind: type, base: type, state: Any) -> Any:
    """`copyreg._reconstructor` for plain objects and named tuples."""
    if not _is_made(kind) or not (base is object or (base is tuple and type(state) is tuple)):
        raise pickle.UnpicklingError(f"makes a {kind!r}, which no Unischema needs")
    return object.__new__(kind) if base is object else tuple.__new__(kind, state)


def _is_called(function: Any) -> bool:
    """Whether a pickled Unischema calls this function."""
    known = (_reconstructor, _restore, collections.OrderedDict, decimal.Decimal, np.dtype)
    return any(function is one for one in known) or _is_made(function)


def _is_made(kind: Any) -> bool:
    """Whether a Unischema contains objects of this type."""
    if not isinstance(kind, type):
        return False
    return issubclass(kind, SparkType) or kind.__name__ in _PETASTORM.get(kind.__module__, ())


def _restore(name: str, fields: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    """A named tuple as pickled by older versions of Spark; a Unischema contains only one type."""
    if name != "UnischemaField":
        raise pickle.UnpicklingError(f"contains a {name}, expected UnischemaField")
    unischema = importlib.import_module("petastorm.unischema")
    return unischema.UnischemaField(**dict(zip(fields, values, strict=True)))
