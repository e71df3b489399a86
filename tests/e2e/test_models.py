"""Every published case gives its expected output through the service: unary and streamed, in both run modes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aclserve_client import (
    AsyncClient,
    BufferInfo,
    Client,
    FailedPrecondition,
    InvalidArgument,
    Item,
    Lease,
    ModelState,
    Result,
)
from aclserve_server.emulator import EmulatorConfig
from e2e.cases import (
    Case,
    StreamCase,
    StringCase,
    assert_close,
    copy_model,
    model_files,
    plain_case,
    plain_cases,
    stream_case,
    string_cases,
)
from serving import Serving, serving

pytestmark = pytest.mark.needs_shared

CASES = plain_cases()
STRINGS = string_cases()
RUN_MODES = ("device", "host")
CLIENTS = 4


@pytest.fixture(scope="module")
def repository(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model of the shared data."""
    root = tmp_path_factory.mktemp("models")
    for name in model_files():
        copy_model(root, name)
    return root


@pytest.fixture(scope="module", params=RUN_MODES)
def served(request: pytest.FixtureRequest, repository: Path) -> Iterator[Serving]:
    """One server for all models."""
    with serving(repository, emulator=EmulatorConfig(run_mode=request.param)) as server:
        yield server


@pytest.fixture
def client(served: Serving) -> Iterator[Client]:
    with Client(served.address) as connected:
        yield connected


def test_all_models_are_listed_and_those_with_strings_alone_are_unavailable(client: Client) -> None:
    states = {model.name: model.state for model in client.models()}
    assert set(states) == set(model_files())
    assert len(CASES) == 60
    unavailable = {name for name, state in states.items() if state is not ModelState.READY}
    assert unavailable == {case.model for case in STRINGS}
    assert all(states[name] is ModelState.UNAVAILABLE for name in unavailable)


@pytest.mark.parametrize(
    ("model", "batching", "max_rows", "mode"),
    [
        ("magika_v3_3", "rows", 32, "asynchronous"),
        ("dynamic_axes_sum", "rows", 32, "asynchronous"),
        ("mnist", "none", 1, "asynchronous"),
        ("silero_vad", "none", 1, "synchronous"),
        ("data_dependent_shape", "none", 1, "synchronous"),
        ("node_reduce_sum_empty_set", "none", 1, "asynchronous"),
    ],
)
def test_how_models_are_run(client: Client, model: str, batching: str, max_rows: int, mode: str) -> None:
    """Symbolic rows are batched, static models run item by item, unknown shapes need the synchronous way."""
    described = client.describe(model)
    assert (described.batching, described.max_rows, described.execution_mode) == (batching, max_rows, mode)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unary(client: Client, case: Case) -> None:
    case.check(client.infer(case.model, case.inputs).outputs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_streamed(client: Client, case: Case) -> None:
    with client.stream(case.model, timeout=60) as stream:
        results = list(stream.map([case.inputs] * 3))
    assert sorted(result.id for result in results) == ["0", "1", "2"]
    for result in results:
        case.check(result.raise_for_error().outputs)
    assert stream.summary is not None
    assert (stream.summary.received_items, stream.summary.succeeded_items) == (3, 3)


def test_several_clients_at_once(served: Serving) -> None:
    """Each client has a connection of its own and goes through all cases in an order of its own, in both ways."""

    def one_client(number: int) -> int:
        cases = list(CASES)
        random.Random(number).shuffle(cases)
        with Client(served.address) as client:
            half = len(cases) // 2
            for case in cases[:half]:
                case.check(client.infer(case.model, case.inputs).outputs)
            answered = answer_over_one_stream(client, cases[half:])
        return half + answered

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(one_client, range(CLIENTS))) == [len(CASES)] * CLIENTS


def answer_over_one_stream(client: Client, cases: list[Case]) -> int:
    """Sends all cases over one stream, each item naming its model, and checks what comes; how many were answered."""
    by_id = {str(case): case for case in cases}
    with client.stream(timeout=60) as stream:
        for result in stream.map(Item(case.inputs, id=str(case), model=case.model) for case in cases):
            by_id.pop(result.id).check(result.raise_for_error().outputs)
    assert not by_id, f"not answered: {list(by_id)}"
    return len(cases)


def test_asynchronous_client(served: Serving) -> None:
    """All cases in flight together on one connection: unary calls, and a stream in order of submission beside them."""

    async def unary(client: AsyncClient, case: Case) -> None:
        case.check((await client.infer(case.model, case.inputs)).outputs)

    async def streamed(client: AsyncClient) -> list[str]:
        ids: list[str] = []
        async with client.stream(order="submission", timeout=60) as stream:
            items = [Item(case.inputs, id=str(case), model=case.model) for case in CASES]
            async for result in stream.map(items):
                CASES[len(ids)].check(result.raise_for_error().outputs)
                ids.append(result.id)
        return ids

    async def both() -> None:
        async with AsyncClient(served.address) as client, asyncio.TaskGroup() as group:
            answers = group.create_task(streamed(client))
            for case in CASES:
                group.create_task(unary(client, case))
        assert answers.result() == [str(case) for case in CASES]

    asyncio.run(both())


@pytest.mark.parametrize("run_mode", RUN_MODES)
def test_as_the_newest_release_behaves(repository: Path, run_mode: str) -> None:
    config = EmulatorConfig(run_mode=run_mode, profile="9.1")
    with serving(repository, emulator=config) as server, Client(server.address) as client:
        assert answer_over_one_stream(client, CASES) == len(CASES)


def test_an_item_of_zero_rows_holds_up_no_other(client: Client) -> None:
    """The empty item needs no device; the row that came in the same message does."""
    cases = [plain_case("dynamic_axes_sum", name) for name in ("batch1", "batch0", "batch3")]
    with client.stream("dynamic_axes_sum", order="submission", timeout=60) as stream:
        stream.send_many([case.inputs for case in cases])
        stream.finish()
        results = list(stream.results())
    assert len(results) == len(cases)
    for case, result in zip(cases, results, strict=True):
        case.check(result.raise_for_error().outputs)


# String tensors.


@pytest.mark.parametrize("case", STRINGS, ids=str)
def test_a_model_with_strings_says_why_it_is_not_served(client: Client, case: StringCase) -> None:
    (listed,) = [model for model in client.models() if model.name == case.model]
    assert "string" in listed.reason
    assert any(repr(name) in listed.reason for name in case.strings), listed.reason
    with pytest.raises(FailedPrecondition) as refused:
        client.describe(case.model)
    assert refused.value.reason == "MODEL_NOT_READY"
    assert listed.reason in refused.value.message


@pytest.mark.parametrize("case", STRINGS, ids=str)
def test_an_upload_with_strings_is_refused(served: Serving, client: Client, case: StringCase) -> None:
    before = served.emulator.ledger()
    with pytest.raises(InvalidArgument) as refused:
        client.upload_and_load("with-strings", model_files()[case.model])
    assert refused.value.reason == "MODEL_INVALID"
    assert "string" in refused.value.message
    assert any(repr(name) in refused.value.message for name in case.strings), refused.value.message
    assert "with-strings" not in {model.name for model in client.models()}
    assert served.emulator.ledger() == before


# State that stays on the device.


def stateful_items(case: StreamCase, buffers: tuple[BufferInfo, BufferInfo]) -> Iterator[Item]:
    """The steps, with the state in two buffers by turns: read from the one, written into the other."""
    ((source, target),) = case.carry.items()
    initial = case.initial_state[target]
    for step in range(case.steps):
        state, left = buffers[step % 2], buffers[(step + 1) % 2]
        fresh = {name: values[step] for name, values in case.step_inputs.items()}
        inputs = {**fresh, **case.constant_inputs, target: state.ref(initial.shape, str(initial.dtype))}
        outputs = {**dict.fromkeys(case.step_outputs), source: left.ref()}
        yield Item(inputs, id=str(step), model=case.model, outputs=outputs)


def run_unary(client: Client, items: Iterable[Item], lease: Lease) -> list[Result]:
    return [client.infer(item.model, item.inputs, id=item.id, outputs=item.outputs, lease=lease) for item in items]


def run_streamed(client: Client, items: Iterable[Item], lease: Lease) -> list[Result]:
    """Without waiting for one step before the next is sent: items of one stream run in their order."""
    with client.stream(lease=lease, timeout=60) as stream:
        return list(stream.map(items))


@pytest.mark.parametrize("run", [run_unary, run_streamed])
def test_state_is_carried_in_buffers_without_leaving_the_device(
    served: Serving, client: Client, run: Callable[[Client, Iterable[Item], Lease], list[Result]]
) -> None:
    case = stream_case("silero_vad")
    ((source, target),) = case.carry.items()
    initial = case.initial_state[target]
    with client.lease() as lease:
        buffers = lease.allocate(initial.nbytes), lease.allocate(initial.nbytes)
        lease.write(buffers[0], initial)
        before = dict(served.emulator.counters.copied_bytes)
        results = run(client, stateful_items(case, buffers), lease)
        after = served.emulator.counters.copied_bytes
        copied = {kind: after[kind] - before[kind] for kind in after}
        state = lease.read_array(buffers[case.steps % 2], initial.shape, str(initial.dtype))
    check_steps(case, results)
    assert_close(state, case.final_state[source], case.rtol, case.atol, f"final {source}")
    to_device = sum(values.nbytes for values in case.step_inputs.values())
    to_device += case.steps * sum(value.nbytes for value in case.constant_inputs.values())
    from_device = sum(values.nbytes for values in case.step_outputs.values())
    apart = served.emulator.config.run_mode == "host"
    assert copied == {
        "host_to_host": 0,
        "host_to_device": to_device if apart else 0,
        "device_to_host": from_device if apart else 0,
        "device_to_device": case.steps * initial.nbytes,
    }


def check_steps(case: StreamCase, results: list[Result]) -> None:
    """The outputs of every step, and that the state was left in its buffer each time."""
    assert [result.raise_for_error().id for result in results] == [str(step) for step in range(case.steps)]
    for step, result in enumerate(results):
        assert list(result.buffers) == list(case.carry)
        assert list(result.outputs) == list(case.step_outputs)
        for name, values in case.step_outputs.items():
            assert_close(result.outputs[name], values[step], case.rtol, case.atol, f"step {step}: {name}")


def test_state_is_carried_by_the_client(client: Client) -> None:
    case = stream_case("silero_vad")
    ((source, target),) = case.carry.items()
    state = case.initial_state[target]
    for step in range(case.steps):
        inputs = {name: values[step] for name, values in case.step_inputs.items()}
        outputs = client.infer(case.model, {**inputs, **case.constant_inputs, target: state}).outputs
        state = outputs[source]
        for name, values in case.step_outputs.items():
            assert_close(outputs[name], values[step], case.rtol, case.atol, f"step {step}: {name}")
    assert_close(state, case.final_state[source], case.rtol, case.atol, f"final {source}")
