"""Quantiles in a fixed amount of memory: counts in buckets whose bounds grow by a constant factor.

A quantile is off by at most 1 % of itself (`RELATIVE_ERROR`) for values from a nanosecond to 31 years, or a byte to an
exabyte; what lies outside goes into the first or last bucket. This is the bound of DDSketch (Masson, Rim, Lee, 2019,
https://www.vldb.org/pvldb/vol12/p2195-masson.pdf) with a range of buckets that is fixed beforehand, so a sketch never
grows: 2,075 numbers of eight bytes. Sketches of the same kind can be added up without a further error.
"""

from __future__ import annotations

import math
from array import array

from groundplane.core.errors import InvalidArgument

RELATIVE_ERROR = 0.01
LEAST, MOST = 1e-9, 1e9
_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GROWTH = math.log(_GROWTH)
_FIRST = math.floor(math.log(LEAST) / _LOG_GROWTH)
_BUCKETS = math.ceil(math.log(MOST) / _LOG_GROWTH) - _FIRST + 2


class Sketch:
    """Values, all of them 0 or more, as counts. Not to be used from several threads at once."""

    __slots__ = ("count", "counts", "most", "total")

    def __init__(self) -> None:
        self.counts = array("Q", bytes(8 * _BUCKETS))
        self.count = 0
        self.total = 0.0
        self.most = 0.0

    def __repr__(self) -> str:
        return f"<Sketch of {self.count} values>"

    @property
    def size_bytes(self) -> int:
        """The memory of the counts; it is the same for any number of values."""
        return len(self.counts) * self.counts.itemsize

    def add(self, value: float) -> None:
        """Put a value in. `invalid_argument` for one that is negative, infinite or not a number."""
        if not 0 <= value < math.inf:
            raise InvalidArgument(f"value: {value!r} is not a number of 0 or more, which is what is summed up here")
        self.counts[_bucket(value)] += 1
        self.count += 1
        self.total += value
        self.most = max(self.most, value)

    def merge(self, other: Sketch) -> None:
        """Put all values of another in."""
        for index, count in enumerate(other.counts):
            if count:
                self.counts[index] += count
        self.count += other.count
        self.total += other.total
        self.most = max(self.most, other.most)

    def clear(self) -> None:
        """Forget all values."""
        self.counts = array("Q", bytes(8 * _BUCKETS))
        self.count, self.total, self.most = 0, 0.0, 0.0

    def quantile(self, q: float) -> float:
        """The value that a share of `q` of all values does not exceed, within 1 % of it; NaN where there is none."""
        if not 0 <= q <= 1:
            raise InvalidArgument(f"q: {q!r} is no share; give 0 to 1, as 0.95")
        if not self.count:
            return math.nan
        rank, below = max(1, math.ceil(q * self.count)), 0
        for index, count in enumerate(self.counts):
            below += count
            if below >= rank:
                return min(_middle(index), self.most)
        return self.most


def _bucket(value: float) -> int:
    if value < LEAST:
        return 0
    return min(_BUCKETS - 1, math.ceil(math.log(value) / _LOG_GROWTH) - _FIRST)


def _middle(index: int) -> float:
    """The value whose error is the same at both ends of the bucket."""
    if index == 0:
        return 0.0
    return 2 * math.exp((index + _FIRST) * _LOG_GROWTH) / (_GROWTH + 1)
