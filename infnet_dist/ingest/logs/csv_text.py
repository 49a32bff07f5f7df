"""How CSV is read, of logs and of side tables: every field as text."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.csv

from infnet_dist.logs_config import CsvFormat

_TAB = (".tsv", ".tab")


def is_csv(path: str) -> bool:
    """Whether a side table is CSV, by its name."""
    return _ending(path).endswith((".csv", *_TAB))


def parse_options(csv: CsvFormat, path: str) -> pa.csv.ParseOptions:
    """What lies between fields: as the config says, else by the file's name."""
    by_name = "\t" if _ending(path).endswith(_TAB) else ","
    return pa.csv.ParseOptions(delimiter=csv.delimiter or by_name)


def text_options(csv: CsvFormat, wanted: Sequence[str]) -> pa.csv.ConvertOptions:
    """These columns as text: what they should be is for `clean` to say, row by row."""
    return pa.csv.ConvertOptions(
        include_columns=list(wanted),
        column_types=dict.fromkeys(wanted, pa.large_string()),
        null_values=list(csv.nulls),
        strings_can_be_null=True,
    )


def _ending(path: str) -> str:
    """The name without what it is compressed by."""
    name = path.split("?")[0].lower()
    for compression in (".gz", ".zst", ".bz2", ".lz4"):
        name = name.removesuffix(compression)
    return name
