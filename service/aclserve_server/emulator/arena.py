"""Which parts of an address range are free: next fit, so that a freed address is not handed out again at once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Arena:
    """Free ranges of `[base, base + size)`. Pure bookkeeping, no memory is touched. Not thread-safe."""

    def __init__(self, base: int, size: int) -> None:
        self._starts = [base]
        self._ends = [base + size]
        self._cursor = base

    def allocate(self, length: int, alignment: int) -> int | None:
        """The start of `length` bytes at a multiple of `alignment`, or None when no free range is long enough."""
        if length < 1 or alignment < 1:
            raise ValueError("length and alignment must be positive")
        first = max(bisect_right(self._starts, self._cursor) - 1, 0)
        for index in range(first, len(self._starts)):
            start = self._fit(index, max(self._starts[index], self._cursor), length, alignment)
            if start is not None:
                return start
        for index in range(len(self._starts)):
            start = self._fit(index, self._starts[index], length, alignment)
            if start is not None:
                return start
        return None

    def release(self, start: int, length: int) -> tuple[int, int]:
        """Free a range again; the answer is the whole free range it now belongs to."""
        end = start + length
        index = bisect_left(self._starts, start)
        joins_next = index < len(self._starts) and self._starts[index] == end
        joins_previous = index > 0 and self._ends[index - 1] == start
        if (index < len(self._starts) and self._starts[index] < end) or (index > 0 and self._ends[index - 1] > start):
            raise ValueError("range is free already")
        if joins_previous and joins_next:
            self._ends[index - 1] = self._ends.pop(index)
            del self._starts[index]
            index -= 1
        elif joins_previous:
            index -= 1
            self._ends[index] = end
        elif joins_next:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)
        return self._starts[index], self._ends[index]

    def free_ranges(self) -> list[tuple[int, int]]:
        """All free ranges, in order, as (start, end)."""
        return list(zip(self._starts, self._ends, strict=True))

    def _fit(self, index: int, lowest: int, length: int, alignment: int) -> int | None:
        start = -(-lowest // alignment) * alignment
        end = start + length
        if end > self._ends[index]:
            return None
        range_start, range_end = self._starts[index], self._ends[index]
        rest = [(low, high) for low, high in ((range_start, start), (end, range_end)) if low < high]
        self._starts[index : index + 1] = [low for low, _ in rest]
        self._ends[index : index + 1] = [high for _, high in rest]
        self._cursor = end
        return start
