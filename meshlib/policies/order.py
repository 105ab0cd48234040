"""The order in which policies apply (decision D5), in one place.

eligible endpoints (the model's answer, as Subchannels) -> lowest non-empty priority -> weights -> picker, and
around each pick: affinity. A policy that narrows the set goes before the weights, one that wraps a pick goes
last; every new one is added here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from meshlib.pickers.base import Picker, PickerBuilder, PickerContext
from meshlib.pickers.subchannel import Subchannel
from meshlib.policies.affinity import Affinity, AffinityPicker


def plan(
    subchannels: Sequence[Subchannel],
    builder: PickerBuilder,
    config: object,
    context: PickerContext,
    affinity: Affinity | None = None,
) -> Picker:
    """The picker for a set of eligible endpoints.

    ``config`` is what ``builder.parse_config`` returned. ``context.previous`` may be what an earlier ``plan``
    returned (with the same builder). ``affinity``: given for a Service with session affinity, the same object
    for every plan of a target.
    """
    previous = context.previous
    if isinstance(previous, AffinityPicker):
        context = replace(context, previous=previous.inner)
    picker = builder.build(lowest_tier(subchannels), config, context)
    return AffinityPicker(picker, affinity) if affinity is not None else picker


def lowest_tier(subchannels: Sequence[Subchannel]) -> Sequence[Subchannel]:
    """Those of the lowest priority number that has a member of positive weight (RFC 2782's rule for SRV).

    A tier whose members all have weight 0 is as good as empty. When no tier has a weight, nothing can be
    picked, and all are returned so that the picker still shows them.
    """
    tiers = {s.endpoint.priority for s in subchannels if s.endpoint.weight > 0}
    if not tiers:
        return subchannels
    lowest = min(tiers)
    if all(s.endpoint.priority == lowest for s in subchannels):
        return subchannels
    return [s for s in subchannels if s.endpoint.priority == lowest]
