"""Training set on disk -> RankingBatch."""
