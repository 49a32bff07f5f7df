"""Loads modules of `contrib` by name, when a run needs one; nothing else imports them."""

from importlib import import_module
from types import ModuleType


def load_contrib(name: str) -> ModuleType:
    """The module `name` of `infnet_dist.contrib`, e.g. `petastorm.part`."""
    return import_module(f"infnet_dist.contrib.{name}")
