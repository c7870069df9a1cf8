"""Charts: the last day of the cluster in rings of slots, each as long as its step. Pure.

A slot is ``floor(time / step)``, its place in the ring ``slot % size``: so the ring never grows, a gap is a gap, and a
clock that jumps can only mislabel what it measured. A slot's number stands beside its values; what is shown are the
slots of the wanted span, whatever else lies in the ring. Names of nodes have numbers, which are given again.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any, Final, NamedTuple

from dashboard.rates import BUCKETS, latency_of
from dolmetsch.messages import LANES

MAX_NODES: Final = 256  # remembered; of more, the one not seen for longest goes
MOST_S: Final = 3.0  # what one sample may stand for: longer is a gap
DIGITS: Final = 2
UNKNOWN: Final = float("nan")

MEAN, MOST, LEAST, PERCENTILE = "mean", "most", "least", "percentile"
CLUSTER: Final[Mapping[str, str]] = {  # how the samples of a slot become its value
    "translations_per_s": MEAN,
    "failed_per_s": MEAN,
    "p50_ms": PERCENTILE,
    "p95_ms": PERCENTILE,
    "p99_ms": PERCENTILE,
    "queued": MOST,
    "in_flight": MEAN,
    "nodes_up": LEAST,
    "workers": LEAST,
}
NODE: Final[Mapping[str, str]] = {
    "cpu_percent": MEAN,
    "ram_percent": MEAN,
    "temperature_c": MOST,
    "chars_per_s": MEAN,
}
PERCENTILES: Final = tuple([place for place, how in enumerate(CLUSTER.values()) if how == PERCENTILE])


class Span(NamedTuple):
    """What a chart shows: ``points`` slots of ``step_s``. The ring is a little larger, for clocks that are set."""

    name: str
    step_s: int
    points: int
    size: int


SPANS: Final = (Span("5m", 1, 300, 330), Span("1h", 10, 360, 370), Span("24h", 240, 360, 370))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The cluster at ``at`` (Unix seconds), for the ``seconds`` before. NaN is not known.

    ``latency`` has the jobs done in that time: a count for each bucket, by lane; empty where that is not known.
    ``nodes`` has for each name the values of ``NODE``.
    """

    at: float
    seconds: float
    translations_per_s: float
    failed_per_s: float
    latency: tuple[tuple[int, ...], ...]
    queued: int
    in_flight: int
    nodes_up: int
    workers: int
    nodes: Mapping[str, tuple[float, ...]]


class Row(NamedTuple):
    """A slot as it is kept: of the cluster (``node`` is None) or of the node with that number."""

    span: int
    place: int
    node: int | None
    slot: int
    samples: int
    values: tuple[float, ...]


class _Cell:
    """A value in the making."""

    __slots__ = ("_count", "_how", "value")

    def __init__(self, how: str, count: int, value: float) -> None:
        self._how = how
        self._count = 0 if value != value else max(1, count)  # NaN is the one number that differs from itself
        self.value = value

    def add(self, value: float) -> None:
        """Take one more sample."""
        if value != value:
            return
        if not self._count:
            self.value = value
        elif self._how == MEAN:
            self.value += (value - self.value) / (self._count + 1)
        else:
            self.value = max(self.value, value) if self._how == MOST else min(self.value, value)
        self._count += 1


class _Series:
    """The ring of one cluster or node: a column for each of its values, and how many samples made each slot."""

    def __init__(self, hows: Sequence[str], size: int) -> None:
        self._hows = hows
        self.samples = array("l", [0] * size)
        self.columns = [array("d", [UNKNOWN] * size) for _ in hows]
        self._open: tuple[int, list[_Cell]] = (-1, [])  # the slot that is being filled

    def clear(self, place: int) -> None:
        """Begin a new slot there."""
        self.samples[place] = 0
        for column in self.columns:
            column[place] = UNKNOWN

    def add(self, slot: int, place: int, values: Sequence[float]) -> None:
        """Take a sample; a slot that has some already is gone on with."""
        if self._open[0] != slot or not self.samples[place]:
            samples = self.samples[place]
            cells = [_Cell(how, samples, column[place]) for how, column in zip(self._hows, self.columns, strict=True)]
            self._open = (slot, cells)
        for cell, column, value in zip(self._open[1], self.columns, values, strict=True):
            cell.add(value)
            column[place] = round(cell.value, DIGITS)
        self.samples[place] += 1

    def values(self, place: int) -> tuple[float, ...]:
        return tuple([column[place] for column in self.columns])


class _Ring:
    """One span: the cluster's series and each node's, over the same slots."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.slots = array("q", [-1] * span.size)
        self.cluster = _Series(tuple(CLUSTER.values()), span.size)
        self.nodes: dict[int, _Series] = {}
        self.changed: set[int] = set()  # places that are not on disk
        self._latency: tuple[int, list[list[int]]] = (-1, [])  # jobs done in the slot that is being filled

    def add(self, sample: Sample, cluster: Sequence[float], nodes: Mapping[int, Sequence[float]]) -> None:
        last = floor(sample.at / self.span.step_s)
        # A sample a little more than a second after the one before stands for the second between, too.
        first = floor((sample.at - min(sample.seconds, MOST_S)) / self.span.step_s) + 1
        for slot in range(min(first, last), last + 1):
            place = self.begin(slot)
            self.cluster.add(slot, place, cluster)
            for number, values in nodes.items():
                self.series(number).add(slot, place, values)
            self._percentiles(slot, place, sample.latency)
            self.changed.add(place)

    def begin(self, slot: int) -> int:
        """The place of ``slot``, emptied of an older one."""
        place = slot % self.span.size
        if self.slots[place] != slot:
            self.slots[place] = slot
            self.cluster.clear(place)
            for series in self.nodes.values():
                series.clear(place)
        return place

    def series(self, number: int) -> _Series:
        found = self.nodes.get(number)
        if found is None:
            found = self.nodes[number] = _Series(tuple(NODE.values()), self.span.size)
        return found

    def _percentiles(self, slot: int, place: int, latency: Sequence[Sequence[int]]) -> None:
        if self._latency[0] != slot:
            self._latency = (slot, [[0] * BUCKETS for _ in LANES])
        sums = self._latency[1]
        for lane, counts in zip(sums, latency, strict=False):
            lane[:] = [one + more for one, more in zip(lane, counts, strict=True)]
        for column, value in zip(PERCENTILES, latency_of(sums), strict=True):
            if value is not None:  # a slot that was begun before a restart keeps what it had until there is more
                self.cluster.columns[column][place] = round(value, DIGITS)


class Charts:
    """All rings."""

    def __init__(self) -> None:
        self._rings = [_Ring(span) for span in SPANS]
        self._numbers: OrderedDict[str, int] = OrderedDict()  # of the nodes, the one seen last at the end

    # ---- what is measured ----

    def add(self, sample: Sample) -> None:
        """Take a sample into every ring."""
        cluster = (
            sample.translations_per_s, sample.failed_per_s, UNKNOWN, UNKNOWN, UNKNOWN, float(sample.queued),
            float(sample.in_flight), float(sample.nodes_up), float(sample.workers),
        )  # fmt: skip
        nodes = {self._number(name): values for name, values in list(sample.nodes.items())[:MAX_NODES]}
        for ring in self._rings:
            ring.add(sample, cluster, nodes)

    def _number(self, name: str) -> int:
        number = self._numbers.pop(name, None)
        if number is None and len(self._numbers) < MAX_NODES:
            number = next(free for free in range(MAX_NODES) if free not in self._numbers.values())
        elif number is None:
            _, number = self._numbers.popitem(last=False)
            for ring in self._rings:
                ring.nodes.pop(number, None)
        self._numbers[name] = number
        return number

    # ---- what is shown ----

    def knows(self, node: str) -> bool:
        """Whether there may be something of ``node``."""
        return node in self._numbers

    def answer(self, span: str, now: float, node: str | None = None) -> dict[str, Any]:
        """The chart of ``span`` up to ``now``: with all nodes, or with ``node`` only."""
        ring = next(ring for ring in self._rings if ring.span.name == span)
        step_s, points = ring.span.step_s, ring.span.points
        last = floor(now / step_s)
        if ring.slots[last % ring.span.size] != last:
            last -= 1  # nothing of this moment is here yet
        slots = range(last - points + 1, last + 1)
        view = _View(ring, slots)
        numbers = self._numbers if node is None else {node: self._numbers[node]} if node in self._numbers else {}
        shown = {name: ring.nodes[number] for name, number in sorted(numbers.items()) if number in ring.nodes}
        return {
            "span": span,
            "step_s": step_s,
            "times": [slot * step_s for slot in slots],
            "cluster": view.columns(ring.cluster, CLUSTER),
            "nodes": {name: view.columns(series, NODE) for name, series in shown.items() if view.shows(series)},
        }

    # ---- what is kept ----

    @property
    def numbers(self) -> Mapping[str, int]:
        """The number of each node's name."""
        return dict(self._numbers)

    def take_changed(self) -> list[Row]:
        """The slots that changed since this was called last."""
        rows = [row for number, ring in enumerate(self._rings) for row in _rows(number, ring)]
        for ring in self._rings:
            ring.changed.clear()
        return rows

    def give_back(self, rows: Sequence[Row]) -> None:
        """``rows`` could not be kept: they count as changed again."""
        for row in rows:
            self._rings[row.span].changed.add(row.place)

    def change_all(self) -> None:
        """Everything counts as changed."""
        for ring in self._rings:
            ring.changed.update([place for place, slot in enumerate(ring.slots) if slot >= 0])

    def restore(self, numbers: Mapping[str, int], rows: Sequence[Row]) -> None:
        """Take over what was kept; a row that fits nowhere is left out. Cluster rows come before those of nodes."""
        for name, number in numbers.items():
            if 0 <= number < MAX_NODES:
                self._numbers[name] = number
        known = set(self._numbers.values())
        for row in rows:
            ring = self._rings[row.span] if 0 <= row.span < len(self._rings) else None
            if ring is None or row.slot < 0 or row.slot % ring.span.size != row.place or row.samples < 1:
                continue
            if row.node is None:
                ring.begin(row.slot)
                _put(ring.cluster, row)
            elif row.node in known and ring.slots[row.place] == row.slot:
                _put(ring.series(row.node), row)


class _View:
    """Columns of one ring, cut to ``slots``."""

    def __init__(self, ring: _Ring, slots: range) -> None:
        size = ring.span.size
        start = slots[0] % size
        self._parts = (slice(start, min(size, start + len(slots))), slice(0, max(0, start + len(slots) - size)))
        self._bad = [index for index, (slot, found) in enumerate(zip(slots, self._cut(ring.slots), strict=True))
                     if slot != found]  # fmt: skip

    def columns(self, series: _Series, names: Mapping[str, str]) -> dict[str, list[float | None]]:
        """The columns by name. NaN stays: JSON has null for it."""
        return {name: self._clean(column) for name, column in zip(names, series.columns, strict=True)}

    def shows(self, series: _Series) -> bool:
        """Whether there is anything of ``series`` in it."""
        samples = self._cut(series.samples)
        for index in self._bad:
            samples[index] = 0
        return any(samples)

    def _clean(self, column: array[float]) -> list[float | None]:
        values: list[float | None] = list(self._cut(column))
        for index in self._bad:
            values[index] = None
        return values

    def _cut(self, column: array[Any]) -> list[Any]:
        first, second = self._parts
        return [*column[first], *column[second]]


def _rows(number: int, ring: _Ring) -> Iterator[Row]:
    for place in sorted(ring.changed):
        slot = ring.slots[place]
        yield Row(number, place, None, slot, ring.cluster.samples[place], ring.cluster.values(place))
        for node, series in ring.nodes.items():
            if series.samples[place]:
                yield Row(number, place, node, slot, series.samples[place], series.values(place))


def _put(series: _Series, row: Row) -> None:
    if len(row.values) == len(series.columns):
        series.samples[row.place] = row.samples
        for column, value in zip(series.columns, row.values, strict=True):
            column[row.place] = value
