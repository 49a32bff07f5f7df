"""A plan for people to review: figures, terminal table, picture, HTML page."""
