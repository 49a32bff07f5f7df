"""Where the rows come from: a split of a training set, or files in Parquet or CSV."""
