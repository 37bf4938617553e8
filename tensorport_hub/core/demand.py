"""What a plan and its parts hold in memory, before anything runs: the engine's budget is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tensorport_hub.core.decode.stacked import members
from tensorport_hub.core.layout import Target, is_swapped
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.tiles import member_tiles

_PLANNED = 1500
"""Bytes of a plan for each stored tensor, measured."""

_NOTED = 2100
"""The same that a run notes of each output file: its digest, in ledger, journal, sink and manifest."""


@dataclass(frozen=True)
class Demand:
    """What the parts of a plan hold, and the plan itself.

    Attributes:
        beside: the most bytes of companions that a part holds which is decoded as its bytes come, and of
            matrices whose axes are swapped.
        most: the most bytes that a held part holds at once, where it may hold as much as it likes.
        least: the most bytes that one grain of a held part needs.
        tensor: the output tensor of that grain.
        noted: bytes of the plan, and of what a run notes of each file that it made.
    """

    beside: int = 0
    most: int = 0
    least: int = 0
    tensor: str = ""
    noted: int = 0


def demand(plan: Plan) -> Demand:
    """What a plan's parts hold, each by itself; and the matrices that are turned round on their way."""
    beside = most = least = turned = 0
    tensor = ""
    for part in plan.parts:
        recipe = plan.recipes[part.recipe]
        turned = max([turned, *(_turned(plan, target) for target in part.targets)])
        for member in members(recipe.decoder, *part.items):
            decoder, (start, stop) = member.decoder, member.items
            tiles = member_tiles(member)
            if not decoder.held:
                beside = max(beside, sum(need.nbytes for need in tiles[0].needs[1:]))
                continue
            most = max(most, *(tile.nbytes for tile in tiles))
            needs = decoder.needs(start, min(start + decoder.grain, stop))
            smallest = sum(need.nbytes for need in needs)
            if smallest > least:
                least, tensor = smallest, recipe.name
    twice = 2 if plan.is_ordered else 1  # what is made again is held beside what is fed
    stored = sum(len(recipe.decoder.inputs) for recipe in plan.recipes)
    noted = _PLANNED * stored + _NOTED * len(plan.outputs)
    return Demand(beside + turned, twice * most, twice * least, tensor, noted)


def _turned(plan: Plan, target: Target) -> int:
    recipe = plan.recipes[target.recipe]
    if not recipe.swapped and not is_swapped(recipe, plan.outputs[target.file].format):
        return 0
    return 2 * prod(recipe.stored_shape[-2:]) * recipe.dtype.itemsize
