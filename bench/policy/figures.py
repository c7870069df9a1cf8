"""What a run is judged by: percentiles, max-min fair shares, Jain's index, the least possible makespan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.policy.fleet import Fleet


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of the ascending ``ordered`` do not exceed (nearest rank); NaN of nothing."""
    if not ordered:
        return float("nan")
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def fair_shares(wanted: Mapping[str, float], total: float) -> dict[str, float]:
    """``total`` among equally entitled tenants, max-min fair: none gets more than it wants, the rest share equally."""
    shares: dict[str, float] = {}
    left = total
    by_wish = sorted(wanted, key=lambda name: wanted[name])
    for number, name in enumerate(by_wish):
        shares[name] = min(wanted[name], left / (len(by_wish) - number))
        left -= shares[name]
    return shares


def jain(parts: Iterable[float]) -> float:
    """Jain's fairness index, (sum x)^2 / (n sum x^2): 1 when all are equal, 1/n when one has everything.

    R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness and Discrimination for Resource Allocation in Shared
    Computer Systems, DEC-TR-301, 1984. There x is what one got over what would have been optimal, as here.
    """
    values = list(parts)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def fairness(got: Mapping[str, float], wanted: Mapping[str, float]) -> float:
    """Jain's index over what each tenant got of its max-min fair share of all that was done."""
    shares = fair_shares(wanted, sum(got.values()))
    return jain(got.get(name, 0.0) / share for name, share in shares.items() if share > 0)


def least_makespan(fleet: Fleet, chars: Sequence[int]) -> float:
    """Seconds below which no policy can finish jobs of ``chars``: all of them at full speed, or the longest alone."""
    fastest = max(board.model.full_chars_per_s / board.model.children for board in fleet.boards)
    return max(sum(chars) / fleet.full_chars_per_s, max(chars) / fastest)
