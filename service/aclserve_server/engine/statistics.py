"""What one loaded model version has done since it was loaded: sums that only grow, with Triton's meanings.

The runner adds to them on the event loop, once per batch; any thread may read them, and may then see a batch half
added. A model that is loaded anew begins at zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(slots=True)
class Totals:
    """What a model has executed so far; `gear_rows` counts padding too."""

    executions: int = 0
    rows: int = 0
    gear_rows: int = 0

    def add(self, rows: int, gear_rows: int) -> None:
        """Counts one execution."""
        self.executions += 1
        self.rows += rows
        self.gear_rows += gear_rows

    def copy(self) -> Totals:
        """The totals as they are now."""
        return replace(self)


@dataclass(slots=True, eq=False)
class Spent:
    """How often something happened, and the nanoseconds that it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        """Adds `count` times, which took `ns` together."""
        self.count += count
        self.ns += ns


@dataclass(slots=True, eq=False)
class BatchStatistics:
    """The executions of one size. Each counts once, however many items it had."""

    count: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution. `queue_ns` and `total_ns` are sums over its items, the compute times those of the batch.

    `total_ns`: from the receipt of an item to its answer.
    """

    items: int
    rows: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    total_ns: int


@dataclass(slots=True, eq=False)
class ModelStatistics:
    """The sums. Items count in `success` or `fail`, but for those that a stream's frame policy dropped.

    `queue` and the compute times are of items that succeeded; each item of a batch counts the batch's whole compute
    time, as in Triton. `inference_count` is of rows that succeeded, `execution_count` of executions, also failed ones.
    `batches` is by rows, without padding. `last_inference_ms` is Unix time, 0 before the first.
    """

    success: Spent = field(default_factory=Spent)
    fail: Spent = field(default_factory=Spent)
    queue: Spent = field(default_factory=Spent)
    compute_input: Spent = field(default_factory=Spent)
    compute_infer: Spent = field(default_factory=Spent)
    compute_output: Spent = field(default_factory=Spent)
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    batches: dict[int, BatchStatistics] = field(default_factory=dict)

    def add_success(self, done: Execution, now_ms: int) -> None:
        """Adds an execution that succeeded, at `now_ms` of Unix time."""
        items = done.items
        self.success.add(items, done.total_ns)
        self.queue.add(items, done.queue_ns)
        self.compute_input.add(items, done.compute_input_ns * items)
        self.compute_infer.add(items, done.compute_infer_ns * items)
        self.compute_output.add(items, done.compute_output_ns * items)
        self.inference_count += done.rows
        self.execution_count += 1
        self.last_inference_ms = now_ms
        size = self.batches.get(done.rows)
        if size is None:
            size = self.batches[done.rows] = BatchStatistics()
        size.count += 1
        size.compute_input_ns += done.compute_input_ns
        size.compute_infer_ns += done.compute_infer_ns
        size.compute_output_ns += done.compute_output_ns

    def add_success_without_rows(self, total_ns: int, now_ms: int) -> None:
        """Adds an item without rows, which no execution was needed for."""
        for spent in (self.queue, self.compute_input, self.compute_infer, self.compute_output):
            spent.count += 1
        self.success.add(1, total_ns)
        self.last_inference_ms = now_ms

    def add_failure(self, items: int, total_ns: int, *, executed: bool, now_ms: int) -> None:
        """Adds items that failed: those of one execution, or of none. `total_ns` is their sum from receipt on."""
        self.fail.add(items, total_ns)
        self.last_inference_ms = now_ms
        if executed:
            self.execution_count += 1

    def sizes(self) -> list[tuple[int, BatchStatistics]]:
        """The executions by rows, ascending; safe on any thread."""
        return sorted(self.batches.items(), key=lambda pair: pair[0])
