"""Which names features and tables can have."""


def is_free(name: str) -> bool:
    """Whether a name can be a key of modules: no dot, and none of torch's own attributes."""
    from torch import nn  # takes seconds, which tasks that only ingest needn't wait for

    return bool(name) and "." not in name and not hasattr(nn.ModuleDict(), name)
