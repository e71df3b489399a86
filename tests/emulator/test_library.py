"""The emulated library as a whole: exports, the guard, planned failures, latency, counters, closing."""

from __future__ import annotations

import ctypes
import gc
import logging
import shutil
import subprocess
import threading
from ctypes import byref, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import pytest

from aclserve_server.acl import types as acl
from aclserve_server.acl.abi import PROTOTYPES
from aclserve_server.acl.errors import AclError
from aclserve_server.acl.library import Library
from aclserve_server.emulator import Emulator, EmulatorConfig, Latency, PlannedFault
from contract.driving import Driver, Slot
from contract.models import doubled
from emulator.conftest import Factory, bind, start


def test_exports_are_the_table(emulator: Emulator) -> None:
    addresses = emulator.addresses()
    assert set(addresses) == {name for name, row in PROTOTYPES.items() if not row.variadic}
    assert all(addresses.values())
    assert len(set(addresses.values())) == len(addresses)


def test_every_function_survives_nonsense(emulator: Emulator, library: Library) -> None:
    """NULL and 0 for every argument: a code, a null or a number comes back, and nothing fails inside."""
    driver = start(library)
    skipped = {"aclrtDeviceTaskAbort"}  # 0 is a good device and a good time-out
    for name, row in PROTOTYPES.items():
        if row.variadic or name in skipped:
            continue
        arguments = [_nothing(kind) for kind in row.arguments]
        library.raw(name)(*arguments)
        assert not emulator.errors, name
    library.raw("aclInit")(None)
    library.aclrtSetDevice(0)
    driver.library.aclrtFree(driver.malloc(64))


def _nothing(kind: Any) -> Any:
    if kind in (ctypes.c_float,):
        return 0.0
    if issubclass(kind, ctypes._SimpleCData) and not issubclass(kind, c_void_p | ctypes.c_char_p):
        return 0
    return kind() if issubclass(kind, ctypes._CFuncPtr) else None


def test_defects_are_kept_and_answered(make_emulator: Factory) -> None:
    """An exception inside an entry point becomes 500000."""

    def broken(seconds: float) -> None:
        raise RuntimeError("broken sleep")

    emulator = make_emulator(latency=Latency(call_us={"aclrtSetDevice": 1.0}), sleep=broken)
    library = bind(emulator)
    logging.disable(logging.ERROR)
    try:
        assert library.raw("aclrtSetDevice")(0) == 500000
    finally:
        logging.disable(logging.NOTSET)
    assert [str(error) for error in emulator.errors] == ["broken sleep"]
    emulator.errors.clear()


def test_planned_calls_fail(emulator: Emulator, driver: Driver) -> None:
    emulator.faults.fail_call("aclrtMalloc", 207001, call=2, times=2)
    driver.malloc(64)
    for _ in range(2):
        with pytest.raises(AclError, match="planned"):
            driver.malloc(64)
    driver.malloc(64)
    emulator.faults.fail_call("aclmdlCreateDataset", 500000)
    assert not driver.library.raw("aclmdlCreateDataset")()
    assert driver.library.raw("aclmdlCreateDataset")()
    emulator.faults.fail_call("aclrtMalloc", 1)
    emulator.faults.clear()
    driver.malloc(64)
    with pytest.raises(ValueError, match="counts from 1"):
        emulator.faults.fail_task("aclrtMalloc", 1, task=0)


def test_failures_by_configuration(make_emulator: Factory) -> None:
    emulator = make_emulator(
        faults=(PlannedFault("aclrtMalloc", 207001, nth=2), PlannedFault("aclrtMemsetAsync", 507011, task=True)),
        fault_rates={"aclrtCreateStream": (0.5, 207008)},
        seed=3,
    )
    driver = start(bind(emulator))
    memory = driver.malloc(64)
    assert driver.library.raw("aclrtMalloc")(byref(acl.DevicePtr()), 64, 0) == 207001
    driver.library.aclrtMemsetAsync(memory, 64, 0, 64, None)
    assert driver.library.raw("aclrtSynchronizeStream")(None) == 507011
    codes = [driver.library.raw("aclrtCreateStream")(byref(acl.Stream())) for _ in range(40)]
    assert set(codes) == {0, 207008}
    again = make_emulator(fault_rates={"aclrtCreateStream": (0.5, 207008)}, seed=3)
    other = start(bind(again))
    assert codes == [other.library.raw("aclrtCreateStream")(byref(acl.Stream())) for _ in range(40)]


def test_latency_is_asked_of_the_sleep_given(make_emulator: Factory) -> None:
    slept: list[float] = []
    latency = Latency(call_us={"aclrtMalloc": 5.0}, task_us={"aclmdlExecuteAsync": 100.0}, row_us=10.0)
    emulator = make_emulator(latency=latency, sleep=slept.append)
    driver = start(bind(emulator))
    slot = Slot(driver, driver.load(doubled(["N", 3])))
    slot.set_batch(4)
    slept.clear()
    driver.malloc(64)
    slot.submit(stream := driver.stream())
    driver.library.aclrtSynchronizeStream(stream)
    assert slept == [pytest.approx(5e-6), pytest.approx(140e-6)]


def test_counters(emulator: Emulator, driver: Driver) -> None:
    slot = Slot(driver, driver.load(doubled(["N", 3])))
    emulator.counters.reset()
    for rows in (1, 4, 4):
        slot.set_batch(rows)
        slot.execute()
    counters = emulator.counters
    assert (counters.executions, counters.executed_rows, counters.bindings_made) == (3, 9, 2)
    assert counters.rows_per_execution == {1: 1, 4: 2}
    assert counters.calls == {"aclmdlSetDynamicBatchSize": 3, "aclmdlExecute": 3}


def test_a_warm_dataset_makes_nothing(emulator: Emulator, driver: Driver) -> None:
    """Preallocated slots: no binding, no allocation after the first round."""
    number = driver.load(doubled(["N", 3]))
    slots, stream = [Slot(driver, number) for _ in range(3)], driver.stream()

    def serve() -> None:
        for slot in slots:
            for rows in (1, 2, 32):
                slot.set_batch(rows)
                slot.submit(stream)
                driver.library.aclrtSynchronizeStream(stream)

    serve()
    emulator.counters.reset()
    for _ in range(20):
        serve()
    assert emulator.counters.bindings_made == 0
    assert emulator.counters.executions == 180


def test_finalize_reports_leaks(emulator: Emulator, driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    driver.malloc(64)
    driver.stream()
    driver.library.aclFinalize()
    assert emulator.leaks == {"device_allocations": 1, "streams": 1}
    assert "1 device_allocations" in caplog.text


def test_close_with_work_and_waiters(make_emulator: Factory) -> None:
    """Closing a held device with waiting threads ends all of them."""
    emulator = make_emulator()
    driver = start(bind(emulator))
    library, memory, context, codes = driver.library, driver.malloc(64), driver.context(), []
    stream, other = driver.stream(), driver.stream()
    emulator.hold()
    library.aclrtMemsetAsync(memory, 64, 0, 64, stream)

    def wait() -> None:
        library.aclrtSetCurrentContext(context)
        codes.append(library.raw("aclrtSynchronizeStream")(stream))

    def report() -> None:
        library.aclrtSetCurrentContext(context)
        library.aclrtSubscribeReport(threading.get_ident(), other)
        subscribed.set()
        codes.append(library.raw("aclrtProcessReport")(-1))

    subscribed = threading.Event()
    threads = [threading.Thread(target=wait), threading.Thread(target=report)]
    for thread in threads:
        thread.start()
    subscribed.wait()
    while emulator.waiters == 0:
        assert threads[0].is_alive()
    emulator.close()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [107012, 107023]
    emulator.close()


def test_many_machines_one_after_another() -> None:
    before = set(threading.enumerate())
    for _ in range(30):
        with Emulator(EmulatorConfig(memory_bytes=1 << 20)) as emulator:
            driver = start(bind(emulator))
            driver.library.aclrtMemsetAsync(driver.malloc(64), 64, 0, 64, None)
            driver.library.aclrtSynchronizeStream(None)
    gc.collect()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    "options",
    [{"run_mode": "pcie"}, {"profile": "7.0"}, {"device_count": -1}, {"memory_bytes": 0}, {"intra_op_threads": 0}],
)
def test_machines_that_cannot_exist(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|may not|expected"):
        EmulatorConfig(**options)


FOREIGN = """
#include <pthread.h>
#include <stdint.h>
#include <stddef.h>
typedef int (*set_device)(int32_t);
typedef int (*allocate)(void **, size_t, uint32_t);
typedef int (*release)(void *);
struct job { set_device set; allocate get; release put; int codes[4]; };
static void *work(void *argument) {
    struct job *job = argument;
    void *memory = NULL;
    job->codes[0] = job->get(&memory, 64, 0);
    job->codes[1] = job->set(0);
    job->codes[2] = job->get(&memory, 64, 0);
    job->codes[3] = job->put(memory);
    return NULL;
}
int run(struct job *job) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, job)) return 1;
    return pthread_join(thread, NULL);
}
"""


def test_threads_made_by_c_keep_their_context(emulator: Emulator, library: Library, tmp_path: Path) -> None:
    """Foreign code calls the pointers: such a thread is new to Python in every call, but not to the runtime."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, target = tmp_path / "foreign.c", tmp_path / "foreign.so"
    source.write_text(FOREIGN)
    subprocess.run([compiler, "-shared", "-fPIC", "-pthread", "-o", target, source], check=True)
    library.aclInit(None)

    class Job(ctypes.Structure):
        _fields_ = (("set", c_void_p), ("get", c_void_p), ("put", c_void_p), ("codes", ctypes.c_int * 4))

    addresses = emulator.addresses()
    job = Job(addresses["aclrtSetDevice"], addresses["aclrtMalloc"], addresses["aclrtFree"])
    foreign = ctypes.CDLL(str(target))
    for _ in range(20):
        assert foreign.run(byref(job)) == 0
        assert list(job.codes) == [107002, 0, 0, 0]
    count = c_uint32()
    library.aclrtGetDeviceCount(byref(count))
    assert count.value == 1
