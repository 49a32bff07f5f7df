"""Draws a plan: time and bytes per rank. Apart, as training needn't import matplotlib for it."""

import numpy as np
from matplotlib.figure import Figure

from infnet_dist.planning.plan import Plan
from infnet_dist.planning.topology import TIERS

_GIB = 2**30
_MAX_BARS = 256  # more ranks are drawn in groups


def draw(plan: Plan) -> Figure:
    """Bars per rank: time by lookup and comms, and bytes by tier with the capacity."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    time_axes, memory_axes = figure.subplots(2, 1, sharex=True)
    groups = np.array_split(np.arange(plan.made_for.topology.world_size), _MAX_BARS)
    groups = [group for group in groups if len(group)]
    places = [group[0] for group in groups]
    width = 0.9 * len(groups[0])

    def of(values: np.ndarray) -> np.ndarray:
        return np.array([values[group].max() for group in groups])

    lookup, comms = np.array(plan.ranks.lookup_ms), np.array(plan.ranks.comms_ms)
    time_axes.bar(places, of(lookup), width, align="edge", label="lookup")
    time_axes.bar(places, of(comms), width, bottom=of(lookup), align="edge", label="comms")
    time_axes.axhline(plan.lower_bound_ms, color="black", linestyle="--", label="lower bound")
    time_axes.set_ylabel("ms, estimated")
    bottom = np.zeros(len(groups))
    memory, capacity = plan.memory / _GIB, plan.made_for.topology.capacity / _GIB
    for i, tier in enumerate(TIERS):
        if not memory[:, i].any():
            continue
        bars = memory_axes.bar(places, of(memory[:, i]), width, bottom, align="edge", label=tier)
        color = bars.patches[0].get_facecolor()
        memory_axes.axhline(capacity[i], color=color, linestyle="--", label=f"{tier} capacity")
        bottom += of(memory[:, i])
    memory_axes.set_ylabel("GiB")
    memory_axes.set_xlabel("rank")
    for axes in (time_axes, memory_axes):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
