"""Values of logs to ids and dense features: vocabularies, hashes, the schema."""
