"""A sampling profile of all threads of the server, in one file.

pyinstrument samples only the thread that starts it, so the stacks are taken here, by a thread of its own that looks at
every other one each 10 ms, and pyinstrument draws them. A look costs 40-80 us, which is below one percent; equal stacks
are kept once, at most `MAX_STACKS` of them. Time that a thread waits counts, under the function that waits.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

INTERVAL_S: Final = 0.01
MAX_STACKS: Final = 50_000

log = logging.getLogger(__name__)

_Stack = tuple[str, tuple[CodeType, ...]]


class Profiler:
    """Samples from `start` to `stop`, which writes the file: a page for a browser (.html), or speedscope's (.json)."""

    def __init__(self, file: Path) -> None:
        """Raises ImportError where pyinstrument is missing, OSError where the file cannot be written."""
        import pyinstrument  # noqa: F401  (said now, not at the stop)

        file.open("ab").close()
        self._file = file
        self._stacks: Counter[_Stack] = Counter()  # nanoseconds; of the sampling thread until it is joined
        self._names: dict[int, str] = {}
        self._samples = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="profiler", daemon=True)
        self._began = 0.0

    def start(self) -> None:
        """Begins to sample."""
        self._began = time.time()
        self._thread.start()

    def stop(self) -> None:
        """Ends and writes the file, which may take seconds; what keeps it from that is logged."""
        self._stopping.set()
        self._thread.join()
        try:
            self._file.write_text(self._render(), encoding="utf-8")
        except Exception:
            log.exception("the profile could not be written")
        else:
            log.info("%d samples of %d stacks are in %s", self._samples, len(self._stacks), self._file)

    def _sample(self) -> None:
        before = time.perf_counter_ns()
        while not self._stopping.wait(INTERVAL_S):
            now = time.perf_counter_ns()
            self._look(now - before)
            before = now

    def _look(self, passed_ns: int) -> None:
        me = threading.get_ident()
        stacks = self._stacks
        self._samples += 1
        for ident, frame in sys._current_frames().items():
            if ident != me:
                stack = (self._name(ident), _codes(frame))
                if stack in stacks or len(stacks) < MAX_STACKS:
                    stacks[stack] += passed_ns

    def _name(self, ident: int) -> str:
        name = self._names.get(ident)
        if name is None:
            self._names = {thread.ident or 0: thread.name for thread in threading.enumerate()}
            name = self._names.setdefault(ident, "a thread of a library")
        return name

    def _render(self) -> str:
        from pyinstrument.renderers import HTMLRenderer, SpeedscopeRenderer
        from pyinstrument.session import Session

        root = _place("aclserve", "<process>")
        records = sorted(
            ([root, _place(name, "<thread>"), *map(_identifier, codes)], ns / 1e9)
            for (name, codes), ns in self._stacks.items()
        )
        session = Session(
            frame_records=records,
            start_time=self._began,
            duration=time.time() - self._began,
            min_interval=INTERVAL_S,
            max_interval=INTERVAL_S,
            sample_count=self._samples,
            start_call_stack=[root],
            target_description="aclserve serve",
            cpu_time=time.process_time(),
            sys_path=sys.path,
            sys_prefixes=[sys.prefix, sys.base_prefix],
        )
        renderer = SpeedscopeRenderer(show_all=True) if self._file.suffix == ".json" else HTMLRenderer()
        return str(renderer.render(session))


def _codes(frame: FrameType | None) -> tuple[CodeType, ...]:
    """The functions of a stack, outermost first."""
    codes = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    return tuple(reversed(codes))


def _identifier(code: CodeType) -> str:
    """A function as pyinstrument names it."""
    return _place(code.co_qualname, code.co_filename, code.co_firstlineno)


def _place(name: str, file: str, line: int = 0) -> str:
    return f"{name}\0{file}\0{line}"
