"""How closed batches reach the device, in order, and how their end is told.

A lane belongs to one model instance. `enter` is called on the device thread with a batch whose rows are in its slot;
the lane runs one batch at a time on its compute stream and keeps those that wait behind it. When AscendCL's callback
says that a batch is past, the stream is empty, so synchronising it returns at once and tells whether every task of
just this batch succeeded: the callback itself carries no status. Only then is the next batch submitted, from the
report thread, without a detour through the event loop. So a failed batch never taints its neighbours, and one model
id never runs on two streams.

`SyncLane` runs batches one after the other with aclmdlExecute, for models that are loaded as synchronous.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import perf_counter_ns
from typing import Protocol

from aclserve_server.acl.errors import AclError
from aclserve_server.device.buffers import Buffer
from aclserve_server.device.device import Device
from aclserve_server.device.faults import is_not_accepted
from aclserve_server.device.model import Model
from aclserve_server.device.reports import ReportThread
from aclserve_server.device.streams import Stream
from aclserve_server.device.thread import DeviceThread
from aclserve_server.engine.batch import Batch, pack
from aclserve_server.engine.slots import Slot

Copy = Callable[[Buffer, int, Buffer, int, int], None]
"""Copies bytes: to, offset, from, offset, length."""

ASYNC_ALIGNMENT = 64
"""What addresses of asynchronous copies must be multiples of, up to CANN 8.1."""


class Lane(Protocol):
    """Where closed batches go."""

    def enter(self, batch: Batch) -> None:
        """Takes a batch whose rows are in its slot. Called on the device thread."""

    def join(self, batch: Batch) -> bool:
        """Takes such a batch without a call to AscendCL, where it would have to wait anyway. From any thread."""

    def close(self) -> None:
        """Gives back what the lane holds. Called on an ACL thread when nothing is in the lane."""


def pack_and_enter(batch: Batch, lane: Lane, finished: Callable[[Batch], None]) -> None:
    """Packs a batch on the device thread and hands it to its lane."""
    try:
        pack(batch)
    except Exception as error:
        batch.error = error
        finished(batch)
        return
    lane.enter(batch)


def upload(batch: Batch) -> None:
    """Starts the copy of the batch's rows to the device, where host and device memory are apart."""
    slot = batch.slot
    stream, marks = slot.copy_stream, slot.marks
    if stream is None or marks is None:
        return
    marks.uploading.record(stream)
    for port, used in zip(slot.inputs, batch.used_input_bytes, strict=True):
        if used and port.staging is not None:
            stream.copy(port.device, 0, port.staging, 0, used)
    marks.uploaded.record(stream)


class AsyncLane:
    """aclmdlExecuteAsync on one compute stream, ended by AscendCL's callback."""

    def __init__(self, device: Device, model: Model, reports: ReportThread, finished: Callable[[Batch], None]) -> None:
        """`finished` is called on the report or the device thread, once for every batch."""
        self._device = device
        self._model = model
        self._reports = reports
        self._finished = finished
        self._stream = device.create_stream()
        try:
            reports.subscribe(self._stream)
        except BaseException:
            self._stream.close()
            raise
        self._lock = threading.Lock()  # guards _running and _waiting
        self._running: Batch | None = None
        self._waiting: deque[Batch] = deque()

    def enter(self, batch: Batch) -> None:
        error = self._upload(batch)
        if is_not_accepted(error):
            error = self._upload(batch)
        if error is not None:
            self._give_back(batch, error)
            return
        with self._lock:
            if self._running is not None:
                self._waiting.append(batch)
                return
            self._running = batch
        self._start(batch)

    def join(self, batch: Batch) -> bool:
        if batch.slot.marks is not None:  # its rows are to be uploaded, and at once
            return False
        with self._lock:
            if self._running is None:
                return False
            self._waiting.append(batch)
        return True

    def close(self) -> None:
        try:
            self._reports.unsubscribe(self._stream)
        finally:
            self._stream.close()

    def _upload(self, batch: Batch) -> Exception | None:
        try:
            upload(batch)
        except Exception as error:
            return self._settle(batch.slot.copy_stream) or error
        return None

    def _start(self, batch: Batch) -> None:
        """Submits the running batch; whatever goes wrong, the batch ends and the next one starts.

        A submission that was refused for the moment is made once more: nothing of it remains, and the inputs are whole.
        """
        lost = self._device.loss.error
        if lost is not None:
            self._give_up(batch, lost)
            return
        batch.started_ns = perf_counter_ns()
        try:
            self._submit(batch)
        except Exception as error:
            if is_not_accepted(error) and not batch.repeated and self._settled(batch) is None:
                batch.repeated = True
                self._start(batch)
            else:
                self._end(batch, error)

    def _give_up(self, batch: Batch, lost: Exception) -> None:
        """The device is lost: nothing more is submitted."""
        with self._lock:
            left = [batch, *self._waiting]
            self._waiting.clear()
            self._running = None
        for each in left:
            self._give_back(each, lost)

    def _submit(self, batch: Batch) -> None:
        slot = batch.slot
        stream = self._stream
        marks = slot.marks
        if marks is not None:
            stream.wait(marks.uploaded)
        gather(batch, partial(self._gather, slot))
        slot.lend(batch.lent_inputs, batch.lent_outputs)
        self._model.set_gear(slot.input_set, batch.gear)
        if marks is not None:
            marks.executing.record(stream)
        self._model.execute_async(slot.input_set, slot.output_set, stream)
        if marks is not None:
            marks.executed.record(stream)
        download(batch, stream.copy)
        if marks is not None:
            marks.downloaded.record(stream)
        self._reports.launch(stream, lambda: self._past(batch))

    def _gather(self, slot: Slot, to: Buffer, to_offset: int, source: Buffer, offset: int, size: int) -> None:
        """Copies a row from a client's buffer: in the stream where its place allows that, at once otherwise."""
        if (to_offset | offset) % ASYNC_ALIGNMENT:
            if slot.marks is not None:  # the upload writes the rows of the whole batch: it must come first
                slot.marks.uploaded.synchronize()
            self._device.copy(to, to_offset, source, offset, size)
        else:
            self._stream.copy(to, to_offset, source, offset, size)

    def _past(self, batch: Batch) -> None:
        """On the report thread: all tasks of the batch are past."""
        batch.executed_ns = perf_counter_ns()
        self._end(batch, None)

    def _end(self, batch: Batch, error: Exception | None) -> None:
        """Establishes that every task succeeded (also when submission failed half-way: nothing may still run)."""
        failure = self._settled(batch)
        error = error or failure or scatter(batch, self._device.copy)
        if error is None:
            _read_times(batch)
        with self._lock:
            following = self._running = self._waiting.popleft() if self._waiting else None
        self._give_back(batch, error)
        if following is not None:
            self._start(following)

    def _settled(self, batch: Batch) -> Exception | None:
        """Waits until nothing of a batch runs; the error of a task of it that failed."""
        first, second = self._settle(batch.slot.copy_stream), self._settle(self._stream)
        return first or second

    def _settle(self, stream: Stream | None) -> Exception | None:
        """Waits until nothing runs on a stream; the error of a task that failed there. A lost device is left alone.

        After an error it is done again, because the error may be of the call itself, which has not waited then.
        """
        first: AclError | None = None
        for _ in range(2):
            if stream is None or self._device.loss.error is not None:
                break
            try:
                stream.synchronize()
                break
            except AclError as failure:
                first = first or failure
        return first

    def _give_back(self, batch: Batch, error: Exception | None) -> None:
        batch.error = error
        batch.finished_ns = perf_counter_ns()
        self._finished(batch)


def _read_times(batch: Batch) -> None:
    """What the device tells of the batch's parts; where it cannot, the host's own times stand."""
    marks = batch.slot.marks
    if marks is not None:
        with suppress(AclError):
            batch.upload_ns, batch.execute_ns = marks.upload_ns(), marks.execute_ns()
            batch.download_ns = marks.download_ns()


class SyncLane:
    """aclmdlExecute, one batch after the other, on the thread for calls that block."""

    def __init__(self, device: Device, model: Model, blocking: DeviceThread, finished: Callable[[Batch], None]) -> None:
        """`finished` is called on the blocking thread, once for every batch."""
        self._device = device
        self._model = model
        self._blocking = blocking
        self._finished = finished

    def enter(self, batch: Batch) -> None:
        self._blocking.submit(lambda: self._run(batch))

    def join(self, batch: Batch) -> bool:
        return False

    def close(self) -> None:
        """Holds nothing."""

    def _run(self, batch: Batch) -> None:
        batch.started_ns = perf_counter_ns()
        try:
            if self._device.loss.error is not None:
                raise self._device.loss.error
            try:
                self._execute(batch)
            except AclError as error:
                if not is_not_accepted(error):
                    raise
                self._execute(batch)  # as in AsyncLane
        except Exception as error:
            batch.error = error
        batch.finished_ns = perf_counter_ns()
        self._finished(batch)

    def _execute(self, batch: Batch) -> None:
        slot = batch.slot
        if slot.staged:
            for port, used in zip(slot.inputs, batch.used_input_bytes, strict=True):
                if used and port.staging is not None:
                    self._device.copy(port.device, 0, port.staging, 0, used)
        gather(batch, self._device.copy)
        slot.lend(batch.lent_inputs, batch.lent_outputs)
        self._model.set_gear(slot.input_set, batch.gear)
        self._model.execute(slot.input_set, slot.output_set)
        batch.executed_ns = perf_counter_ns()
        download(batch, self._device.copy)
        batch.error = scatter(batch, self._device.copy)


def gather(batch: Batch, copy: Copy) -> None:
    """Copies inputs that lie in clients' buffers into their rows."""
    for ticket, offsets in zip(batch.tickets, batch.input_offsets, strict=True):
        if ticket.pins:
            for part, port, offset in zip(ticket.parts, batch.slot.inputs, offsets, strict=True):
                if part.pin is not None:
                    copy(port.device, offset, part.pin.buffer, part.pin.offset_bytes, part.size_bytes)


def download(batch: Batch, copy: Copy) -> None:
    """Copies outputs to the host's staging, where memory is apart."""
    if not batch.slot.staged:
        return
    for port, used in zip(batch.slot.outputs, batch.used_output_bytes, strict=True):
        if used and port.staging is not None:
            copy(port.staging, 0, port.device, 0, used)


def scatter(batch: Batch, copy: Copy) -> Exception | None:
    """Copies outputs into clients' buffers, once it is known that every task succeeded; what went wrong with that."""
    try:
        places = zip(batch.tickets, batch.output_offsets, batch.output_sizes, strict=True)
        for at, (ticket, offsets, sizes) in enumerate(places):
            for wanted in ticket.outputs if ticket.pins and at not in batch.errors else ():
                pin, index = wanted.pin, wanted.index
                if pin is not None:
                    source = batch.slot.outputs[index].device
                    copy(pin.buffer, pin.offset_bytes, source, offsets[index], sizes[index])
    except Exception as error:
        return error
    return None
