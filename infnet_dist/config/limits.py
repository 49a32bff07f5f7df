"""Upper limits of sizes in run files and manifests."""

MAX_TABLE_ROWS = 10**14
MAX_GROUP_ROWS = 100_000_000  # memory for a row group is allocated before its rows exist
MAX_LENGTH = 10_000  # items of a history or list in one row
MAX_VECTOR = 2**16  # numbers of a vector
MAX_BUCKETS = 100_000
MAX_HOURS = 1_000_000.0
