"""All versions of all models that a server knows, and which of them serves where none is named."""

from __future__ import annotations

from collections.abc import Callable, Set

from aclserve.errors import AclserveError, FailedPrecondition, NotFound
from aclserve_server.engine.records import Record, State
from aclserve_server.engine.repository import Entry

IDLE = (State.UNLOADED, State.UNAVAILABLE)


class Registry:
    """Records by name and version. Belongs to the event loop."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        """`changed(name)` is told when a model's readiness may have changed."""
        self._changed = changed
        self._records: dict[tuple[str, int], Record] = {}
        self._latest: dict[str, Record] = {}

    def all(self) -> list[Record]:
        """All versions of all models, by name and version."""
        return [self._records[key] for key in sorted(self._records)]

    def of(self, name: str) -> list[Record]:
        """The versions of one model, ascending."""
        return [record for record in self.all() if record.name == name]

    def serving(self, name: str) -> list[Record]:
        """The versions of one model that are ready."""
        return [record for record in self.of(name) if record.state is State.READY]

    def get(self, name: str, version: int) -> Record | None:
        """One version; for 0 the one that serves where none is named."""
        return self._records.get((name, version)) if version else self._latest.get(name)

    def find(self, name: str, version: int) -> Record:
        """One version that is ready; raises why there is none."""
        record = self.get(name, version)
        if record is None or record.state is not State.READY:
            raise self.absent(name, version)
        return record

    def is_ready(self, name: str) -> bool:
        """Whether some version of a model serves."""
        return name in self._latest

    @property
    def all_ready(self) -> bool:
        """Whether every model serves that somebody asked for and nobody unloaded."""
        return all(record.name in self._latest for record in self._records.values() if record.wanted)

    def put(self, record: Record) -> None:
        """Lists a record, instead of the one of its name and version."""
        self._records[record.name, record.version] = record

    def drop(self, record: Record) -> None:
        """Forgets a record, unless another has taken its place."""
        if self._records.get((record.name, record.version)) is record:
            del self._records[record.name, record.version]

    def note(self, entry: Entry) -> None:
        """Lists what is on disk, unless that version is in use."""
        known = self._records.get((entry.name, entry.version))
        if known is None:
            self.put(record_of(entry))
        elif known.state in IDLE:
            record = record_of(entry)
            record.wanted = known.wanted
            if record.state is State.UNLOADED and (known.state is State.UNLOADED or known.file is not None):
                record.state, record.reason = known.state, known.reason  # a load that failed is told until the next
            self.put(record)

    def forget(self, found: Set[tuple[str, int]], name: str | None = None) -> None:
        """Drops the records, of one model or of all, that are not on disk any more, but for those in use."""
        for key, record in list(self._records.items()):
            if name in (None, key[0]) and key not in found and record.state in IDLE:
                del self._records[key]

    def elect(self, name: str) -> None:
        """Finds the version that serves where none is named."""
        ready = self.serving(name)
        if ready:
            self._latest[name] = ready[-1]
        else:
            self._latest.pop(name, None)
        self._changed(name)

    def absent(self, name: str, version: int) -> AclserveError:
        """Why a model cannot serve."""
        known = self.of(name)
        which = f"model {name[:200]!r}" + (f" version {version}" if version else "")
        if not known:
            names = ", ".join(sorted(self._latest)[:20]) or "none"
            return NotFound(f"there is no {which}; ready are: {names}", reason="MODEL_NOT_FOUND")
        if version and all(record.version != version for record in known):
            versions = ", ".join(str(record.version) for record in known)
            return NotFound(f"there is no {which}; there are versions {versions}", reason="MODEL_NOT_FOUND")
        record = next((r for r in known if r.version == version), known[-1])
        told = record.reason if record.state is not State.UNLOADED else ""
        because = f": {told}" if told else "; load it first"
        return FailedPrecondition(f"{which} is {record.state.value}{because}", reason="MODEL_NOT_READY")


def record_of(entry: Entry) -> Record:
    """The record of a version on disk that nobody has loaded."""
    record = Record(entry.name, entry.version, entry.config, entry.file, stamp=entry.stamp)
    if entry.problem:
        record.state, record.reason = State.UNAVAILABLE, entry.problem
    return record
