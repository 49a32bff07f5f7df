"""Raw logs -> a training set: ids, histories, counters, splits by time, Parquet parts, a report."""
