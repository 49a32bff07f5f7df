"""Reads a pickled Unischema without running what else a pickle may hold.

Petastorm keeps the description of a data set as a pickle beside the rows, and a plain unpickling
runs whatever its author wrote there; petastorm's own restricted unpickler lets all of `builtins`
pass, `eval` included. Here only the few names pass of which a Unischema is made.
"""

import builtins
import collections
import copyreg
import decimal
import importlib
import io
import pickle
from typing import Any

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
# Python 2 called two of the modules by other names, and its pickles are still about.
_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("decimal", "Decimal"): decimal.Decimal,
    ("copyreg", "_reconstructor"): copyreg._reconstructor,  # type: ignore[attr-defined]
    **{
        ("builtins", name): getattr(builtins, name)
        for name in ("bool", "bytes", "float", "int", "object", "str", "tuple")
    },
}
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_OLD_NUMPY = {"unicode_": np.str_, "string_": np.bytes_, "bool8": np.bool_}


class SparkType:
    """Stands for a type of pyspark, which only writing with Spark needs."""

    def __init__(self, *arguments: object) -> None:
        """Take what the type was made with, e.g. the precision of a decimal."""
        self.arguments = arguments


def load_unischema(data: bytes) -> Any:
    """The Unischema of a pickle.

    Raises:
        pickle.UnpicklingError: the pickle names anything that no Unischema needs, or is damaged.
    """
    try:
        found = _Unpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise pickle.UnpicklingError(f"damaged ({type(error).__name__}: {error})") from None
    unischema = importlib.import_module("petastorm.unischema")
    if not isinstance(found, unischema.Unischema):
        raise pickle.UnpicklingError(f"holds {type(found).__name__}, expected a Unischema")
    return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a name of the pickle stands for.

        Raises:
            pickle.UnpicklingError: no Unischema needs it.
        """
        module = _RENAMED.get(module, module)
        if name in _PETASTORM.get(module, ()):
            return getattr(importlib.import_module(module), name)
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
            f"names {module}.{name}, which no Unischema needs: not opened, since it might run code"
        )


def _restore(name: str, fields: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    """A named tuple as older versions of Spark pickled it; a Unischema holds one kind alone."""
    if name != "UnischemaField":
        raise pickle.UnpicklingError(f"holds a {name}, expected UnischemaField")
    unischema = importlib.import_module("petastorm.unischema")
    return unischema.UnischemaField(**dict(zip(fields, values, strict=True)))
