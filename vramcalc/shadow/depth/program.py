"""A walk of a few decoder layers, read as the walk of any number of them.

A tape is cut into segments at its marks. Where a pass goes over the decoder layers one after the other, the segments
of the inner layers are alike, so three walked layers stand for any depth: the first, the last, and one that repeats.
Every total is then linear in the repeats, and a full sequence of events can still be written out for the allocator.
Layers that are not alike raise :class:`NotRepeatable` when the program is made; the caller walks them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from vramcalc.shadow.depth.few_layers import NotRepeatable
from vramcalc.shadow.depth.segments import Segment, cut, passes
from vramcalc.shadow.engine.tape import Birth, Tape


@dataclass(frozen=True)
class Instance:
    """One occurrence of a segment at the full depth."""

    segment: int
    layer: int | None
    """Decoder layer at full depth."""
    group: int
    """The pass over the layers it belongs to; segments outside layers are groups of their own."""


References = list[tuple[int, int]]
"""Events as places in the births of segments: which segment, and the place there, inverted for a death."""


class Link(NamedTuple):
    """What the events of an instance mean at full depth.

    Attributes:
        targets: numbers of the instances that own what its events are about, itself first.
        references: for every event which of ``targets``, and the place among its births, inverted for a death.
    """

    targets: list[int]
    references: References


class Program:
    """Segments of a tape, and how they repeat at full depth.

    Attributes:
        births: of the tape.
        events: of the tape, up to its end mark.
        segments: in order.
        instances: occurrences of segments at full depth, in order.

    Raises:
        NotRepeatable: the walked layers do not stand for all of them.
    """

    def __init__(self, tape: Tape, walked: int, n_layers: int) -> None:
        self.births: Sequence[Birth] = tape.births
        end, _, _ = tape.marks[-1]
        self.events = tape.events[:end]
        self.walked, self.n_layers = walked, n_layers
        self.segments = cut(tape)
        self.instances = [i for i in self._instances() if not self.segments[i.segment].empty]
        self._own, self._home, self._position = self._births_by_segment()
        # A walk of every layer stands for itself; whether a shorter one does is settled here, for good.
        self._links = self._resolved() if walked < n_layers else []

    def step_of(self, number: int) -> str:
        """Name of the step an instance belongs to; ``load`` and ``states`` before training."""
        return self.segments[self.instances[number].segment].phase.split(".")[0]

    # -- structure ---------------------------------------------------------------------------------------------------

    def _instances(self) -> Iterator[Instance]:
        for group, members in enumerate(passes(self.segments)):
            layers = {self.segments[index].layer: index for index in members}
            if None in layers:
                yield Instance(members[0], None, group)
                continue
            ascending = len(members) == 1 or self.segments[members[0]].layer == min(layers)  # type: ignore[type-var]
            order = range(self.n_layers) if ascending else range(self.n_layers - 1, -1, -1)
            for layer in order:
                index = layers.get(self._stand_in(layer, layers.keys(), ascending))
                if index is not None:
                    yield Instance(index, layer, group)

    def _stand_in(self, layer: int, present: Collection[int | None], ascending: bool) -> int:
        """The walked layer that a layer at full depth repeats; the first and the last stand for themselves alone."""
        last = self.walked - 1
        if self.n_layers == self.walked or layer < last - 1:
            return layer
        if layer == self.n_layers - 1:
            return last
        if layer >= last and ascending and {last - 1, last} <= set(present):
            return last
        return last - 1

    # -- totals ------------------------------------------------------------------------------------------------------

    def totals(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Live bytes through time: for every instance the highest total inside it, and the total after it.

        Args:
            sizes: bytes of each birth, as the allocator counts them.
        """
        running = [0, *accumulate(sizes[event] if event >= 0 else -sizes[~event] for event in self.events)]
        local = [
            (max(running[s.start : s.stop + 1]) - running[s.start], running[s.stop] - running[s.start])
            for s in self.segments
        ]
        found, current = [], 0
        for instance in self.instances:
            highest, change = local[instance.segment]
            found.append((current + highest, current + change))
            current += change
        return found

    def peak_event(self, sizes: Sequence[int], segment: int) -> int:
        """Events of the tape up to and including the one at which a segment is highest."""
        s = self.segments[segment]
        current = best = 0
        at = s.start
        for index in range(s.start, s.stop):
            event = self.events[index]
            current += sizes[event] if event >= 0 else -sizes[~event]
            if current > best:
                best, at = current, index + 1
        return at

    # -- full depth --------------------------------------------------------------------------------------------------

    def expand(self) -> Expansion:
        """The sequence of events at full depth."""
        expansion = Expansion([], [], [], [])
        first: list[int] = []
        for instance, link in zip(self.instances, self._links or self._resolved(), strict=True):
            own = self._own[instance.segment]
            expansion.starts.append(len(expansion.events))
            first.append(len(expansion.births))
            expansion.births.extend(own)
            expansion.layers.extend([instance.layer] * len(own))
            bases = [first[number] for number in link.targets]
            expansion.events.extend(
                [bases[b] + place if place >= 0 else place - bases[b] for b, place in link.references]
            )
        return expansion

    def _resolved(self) -> list[Link]:
        """For every instance what its events mean at full depth.

        Raises:
            NotRepeatable: a free that no repeated layer can be given.
        """
        links: list[Link] = []
        made: dict[tuple[int, int | None], int] = {}
        group_of = {i.segment: i.group for i in self.instances}
        repeats = Counter(i.segment for i in self.instances)
        relative = {index: self._relative(index) for index in group_of}
        known: dict[tuple[int, ...], References] = {}
        for number, instance in enumerate(self.instances):
            index = instance.segment
            births, references = relative[index]
            made[instance.group, instance.layer] = number
            targets = [number]
            for born in births:
                if self.segments[born].layer is None and repeats[index] > 1:
                    raise NotRepeatable(f"layer {instance.layer} frees what exists once")
                layer = self._born_in(self.segments[index], self.segments[born], instance.layer)
                target = made.get((group_of[born], layer))
                if target is None:
                    raise NotRepeatable(f"layer {instance.layer} frees what layer {layer} does not make before it")
                targets.append(target)
            templates = tuple(self.instances[target].segment for target in targets)
            if templates not in known:
                known[templates] = self._translated(references, births, templates[1:])
            links.append(Link(targets, known[templates]))
        return links

    def _translated(self, references: References, births: list[int], templates: Sequence[int]) -> References:
        """References to places in segments, as places in the segments that stand where those were."""
        places = {
            which: self._counterparts(self._own[born], self._own[template])
            for which, (born, template) in enumerate(zip(births, templates, strict=True), start=1)
            if template != born and not self._alike(self._own[template], self._own[born])
        }
        return [self._moved(which, place, places) for which, place in references] if places else references

    def _moved(self, which: int, place: int, places: dict[int, list[int]]) -> tuple[int, int]:
        """A reference into a segment that another one, not quite like it, stands for."""
        if which not in places:
            return which, place
        found = places[which][~place]
        if found < 0:
            raise NotRepeatable("a layer frees what the layers like it do not make")
        return which, ~found

    def _counterparts(self, births: list[int], others: list[int]) -> list[int]:
        """Place in ``others`` of each of ``births``: the same operator of the same module of its layer, -1 for none."""
        index = {key: place for place, key in enumerate(self._keys(others))}
        return [index.get(key, -1) for key in self._keys(births)]

    def _keys(self, births: list[int]) -> list[tuple[object, ...]]:
        """What is made where in a layer, and which of several it is."""
        seen: Counter[tuple[object, ...]] = Counter()
        keys: list[tuple[object, ...]] = []
        for birth in map(self.births.__getitem__, births):
            module = birth.module.replace(f".layers.{birth.layer}.", ".layers.*.")
            key = (module, birth.op, birth.shape, birth.dtype)
            keys.append((*key, seen[key]))
            seen[key] += 1
        return keys

    def _relative(self, index: int) -> tuple[list[int], References]:
        """Events of a segment as places in the births of segments.

        Returns:
            The other segments whose births it frees, and for every event which of them it means (0: the segment
            itself, n: the n-th other) and the place there, inverted for a death.
        """
        s = self.segments[index]
        others: dict[int, int] = {index: 0}
        references = []
        for event in self.events[s.start : s.stop]:
            birth = event if event >= 0 else ~event
            which = others.setdefault(self._home[birth], len(others))
            place = self._position[birth]
            references.append((which, place if event >= 0 else ~place))
        return list(others)[1:], references

    def _births_by_segment(self) -> tuple[list[list[int]], list[int], list[int]]:
        """Births of each segment; the segment of each birth, and its place there."""
        home, position = [0] * len(self.births), [0] * len(self.births)
        own: list[list[int]] = []
        for index, s in enumerate(self.segments):
            own.append([event for event in self.events[s.start : s.stop] if event >= 0])
            for place, birth in enumerate(own[-1]):
                home[birth], position[birth] = index, place
        return own, home, position

    def _born_in(self, freeing: Segment, born: Segment, layer: int | None) -> int | None:
        """Layer at full depth of a birth that a segment, standing for ``layer``, frees."""
        if born.layer is None or self.n_layers == self.walked:
            return born.layer
        if freeing.layer is None or layer is None:
            if born.layer == 0:
                return 0
            if born.layer == self.walked - 1:
                return self.n_layers - 1
            raise NotRepeatable(f"{freeing.phase} frees what layer {born.layer} made")
        if abs(born.layer - freeing.layer) > 1:
            ends = {0: 0, self.walked - 1: self.n_layers - 1}
            if ends.get(freeing.layer) == layer and born.layer in ends:
                # What passes through every layer, as a sum of gradients that is added to in place does.
                return ends[born.layer]
            raise NotRepeatable(f"layer {freeing.layer} of {freeing.phase} frees what layer {born.layer} made")
        return layer + born.layer - freeing.layer

    def _alike(self, a: list[int], b: list[int]) -> bool:
        """Whether two layers make the same tensors in the same order: a place in one is a place in the other."""
        births = self.births
        return len(a) == len(b) and all(
            births[x].shape == births[y].shape and births[x].dtype == births[y].dtype for x, y in zip(a, b, strict=True)
        )


@dataclass(frozen=True)
class Expansion:
    """Events at full depth.

    Attributes:
        events: ``id`` for a birth, ``~id`` for a death.
        births: by id, the index of the walked birth it repeats.
        layers: by id, the decoder layer, None outside.
        starts: index into ``events`` of every instance.
    """

    events: list[int]
    births: list[int]
    layers: list[int | None]
    starts: list[int]
