"""A training set on disk -> RankingBatch."""
