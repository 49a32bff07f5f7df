"""From a checkpoint to scores: a bundle is exported with all of the package, and read without.

`bundle.Bundle` opens a bundle and scores requests; it and what it imports need torch and numpy
alone. `export` writes bundles, `check` compares one with the model that it was made of.
"""
