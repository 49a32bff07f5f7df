"""Publications of a model while it trains: `tracking` marks rows, `publishing` writes them."""
