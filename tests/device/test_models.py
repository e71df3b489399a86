"""Models: loading in every way, descriptions, gears, execution, unknown shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from aclserve.errors import FailedPrecondition, InvalidArgument, Unimplemented
from aclserve_server.acl.errors import AclError
from aclserve_server.device.dataset import Dataset
from aclserve_server.device.device import Device
from aclserve_server.device.faults import classify
from aclserve_server.device.loading import ModelMemory
from aclserve_server.device.model import Model
from aclserve_server.emulator import Emulator, bake
from device import onnx_models
from device.helpers import Bound, read, write

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def check_doubled(model: Model) -> None:
    with Bound(model) as bound:
        (y,) = bound.run([X])
        np.testing.assert_array_equal(y, X + X)


def test_load_from_file_and_from_memory(device: Device, tmp_path: Path) -> None:
    data = onnx_models.doubled([2, 3])
    path = tmp_path / "modèle.onnx"
    path.write_bytes(data)
    with device.load_model(path) as from_file, device.load_model(data) as from_memory:
        assert from_file.id != from_memory.id
        assert from_file.description == from_memory.description
        check_doubled(from_file)
        check_doubled(from_memory)


def test_bytes_live_in_device_memory_until_unload(device: Device, emulator: Emulator) -> None:
    before = emulator.ledger()["device_allocations"]
    data = onnx_models.doubled([2, 3])
    model = device.load_model(data)
    staged = emulator.ledger()["device_allocations"] - before
    assert staged == (1 if device.run_mode == "device" else 0)
    assert len(device.children.of("buffer")) == staged
    model.close()
    assert emulator.ledger()["device_allocations"] == before


def test_static_description(device: Device) -> None:
    with device.load_model(onnx_models.rows(4)) as model:
        found = model.description
    assert [(info.name, info.dtype, info.shape, info.size_bytes) for info in found.inputs] == [
        ("x", np.float32, (4, 3), 48)
    ]
    assert [(info.shape, info.size_bytes) for info in found.outputs] == [((4, 3), 48), ((4,), 16)]
    assert found.outputs[0].format in ("ND", "NCHW")
    assert [gear.kind for gear in found.gears] == ["static"]
    assert found.gears[0].input_shapes == ((4, 3),)
    assert found.gears[0].output_shapes == ((4, 3), (4,))
    assert found.gear_input is None
    assert not found.unknown_shape
    assert found.input_count == 1


@pytest.mark.parametrize("path_or_bytes", ["path", "bytes"])
def test_memory_of_the_caller(device: Device, tmp_path: Path, path_or_bytes: str) -> None:
    data = onnx_models.linear()
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    source = path if path_or_bytes == "path" else data
    work_bytes, weight_bytes = device.query_model_size(source)
    assert weight_bytes >= 36
    with device.allocate(max(work_bytes, 1)) as work, device.allocate(weight_bytes) as weight:
        for memory in (ModelMemory(work, weight), ModelMemory(work=work), ModelMemory(weight=weight), ModelMemory()):
            with device.load_model(source, memory) as model:
                assert (model.description.work_bytes, model.description.weight_bytes) == (work_bytes, weight_bytes)
                with Bound(model) as bound:
                    (y,) = bound.run([X])
                    np.testing.assert_array_equal(y, X @ np.ones((3, 3), np.float32))
        with (
            device.load_model(source, ModelMemory(weight=weight)),
            device.load_model(source, ModelMemory(weight=weight)) as second,
        ):
            with pytest.raises(FailedPrecondition, match="2 loaded models") as caught:
                weight.close()
            assert caught.value.reason == "BUFFER_IN_USE"
            assert not weight.closed
            check = second.description
        assert check.weight_bytes == weight_bytes


def test_memory_that_does_not_fit(device: Device) -> None:
    data = onnx_models.linear()
    _, weight_bytes = device.query_model_size(data)
    with device.allocate(weight_bytes - 1) as small, device.allocate_host(weight_bytes) as host:
        with pytest.raises(InvalidArgument, match=f"takes {weight_bytes} bytes"):
            device.load_model(data, ModelMemory(weight=small))
        with pytest.raises(InvalidArgument, match="host memory") as caught:
            device.load_model(data, ModelMemory(weight=host))
        assert caught.value.reason == "MODEL_MEMORY_INVALID"


def test_bad_models_leave_nothing(device: Device, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"not a model at all" * 10)
    for source in (tmp_path / "absent.onnx", corrupt, b"not a model at all" * 10):
        with pytest.raises(AclError) as caught:
            device.load_model(source)
        answer = classify(caught.value)
        assert (type(answer), answer.reason) == (InvalidArgument, "MODEL_INVALID")
        assert str(tmp_path) not in str(answer)
    with pytest.raises(InvalidArgument, match="no bytes"):
        device.load_model(b"")


def test_failed_description_unloads(device: Device, emulator: Emulator) -> None:
    emulator.faults.fail_call("aclmdlGetOutputDims", 100000)
    with pytest.raises(AclError):
        device.load_model(onnx_models.doubled([2, 3]))
    assert emulator.ledger()["models"] == 0
    assert emulator.counters.calls["aclmdlUnload"] == 1


@pytest.mark.parametrize("function", ["aclmdlSetDynamicBatchSize", "aclmdlGetCurOutputDims", "aclmdlGetDynamicBatch"])
def test_failed_probe_unloads(device: Device, emulator: Emulator, function: str) -> None:
    emulator.faults.fail_call(function, 507013, call=1)
    with pytest.raises(AclError):
        device.load_model(bake(onnx_models.rows(), dynamic_batch_size=(1, 2)))
    assert emulator.ledger()["models"] == emulator.ledger()["datasets"] == 0


# ---- gears


def test_batch_gears(device: Device) -> None:
    data = bake(onnx_models.rows(), dynamic_batch_size=(1, 2, 4))
    with device.load_model(data) as model:
        found = model.description
        assert [info.name for info in found.inputs] == ["x"]
        assert found.inputs[0].shape == (-1, 3)
        assert found.inputs[0].size_bytes == 48
        assert found.gear_input is not None
        assert found.input_count == 2
        assert [(gear.kind, gear.values, gear.input_shapes, gear.output_shapes) for gear in found.gears] == [
            ("batch", (rows,), ((rows, 3),), ((rows, 3), (rows,))) for rows in (1, 2, 4)
        ]
        with Bound(model) as bound:
            for gear in (found.gears[2], found.gears[0], found.gears[1], found.gears[2]):
                x = np.random.default_rng(gear.values[0]).normal(size=gear.input_shapes[0]).astype(np.float32)
                y, total = bound.run([x], gear)
                np.testing.assert_allclose(y, x + x)
                np.testing.assert_allclose(total, x.sum(axis=1), rtol=1e-5)


def test_gears_of_symbolic_batch_without_metadata(device: Device) -> None:
    with device.load_model(onnx_models.rows()) as model:
        assert [gear.values for gear in model.description.gears] == [
            (size,) for size in (*range(1, 16), *range(16, 33, 2))
        ]


def test_height_and_width_gears(device: Device) -> None:
    data = bake(onnx_models.pooled(), dynamic_image_size=((4, 6), (8, 8)))
    with device.load_model(data) as model:
        found = model.description
        assert [(gear.kind, gear.values, gear.input_shapes, gear.output_shapes) for gear in found.gears] == [
            ("height_width", (h, w), ((1, 2, h, w),), ((1, 2, 1, 1), (1, 2, h, w))) for h, w in ((4, 6), (8, 8))
        ]
        with Bound(model) as bound:
            for gear in (*found.gears, found.gears[0]):
                x = np.random.default_rng(1).normal(size=gear.input_shapes[0]).astype(np.float32)
                y, z = bound.run([x], gear)
                np.testing.assert_allclose(y, x.mean(axis=(2, 3), keepdims=True), rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(z, x + x)


def test_dims_gears(device: Device) -> None:
    data = bake(onnx_models.product(), dynamic_dims=((2, 3, 3), (5, 6, 6)))
    with device.load_model(data) as model:
        found = model.description
        assert [(gear.kind, gear.values, gear.input_shapes, gear.output_shapes) for gear in found.gears] == [
            ("dims", (m, k, k, 4), ((m, k), (k, 4)), ((m, 4),)) for m, k in ((2, 3), (5, 6))
        ]
        with Bound(model) as bound:
            for gear in (*found.gears, found.gears[0]):
                rng = np.random.default_rng(2)
                a, b = (rng.normal(size=shape).astype(np.float32) for shape in gear.input_shapes)
                (c,) = bound.run([a, b], gear)
                np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-5)


# ---- execution


def test_asynchronous_execution_writes_only_when_it_runs(device: Device, emulator: Emulator) -> None:
    with (
        device.load_model(onnx_models.doubled([2, 3])) as model,
        Bound(model) as bound,
        device.create_stream() as stream,
        device.allocate_host(24) as host_in,
        device.allocate_host(24) as host_out,
    ):
        host_in.view()[:] = X.tobytes()
        host_out.view()[:] = bytes(24)
        emulator.hold()
        stream.copy(bound.inputs[0], 0, host_in, 0, 24)
        model.execute_async(bound.input_set, bound.output_set, stream)
        stream.copy(host_out, 0, bound.outputs[0], 0, 24)
        assert not stream.query()
        assert bytes(host_out.view()) == bytes(24)
        emulator.release()
        stream.synchronize()
        np.testing.assert_array_equal(np.frombuffer(bytes(host_out.view()), np.float32).reshape(2, 3), X + X)


def test_failed_execution_keeps_outputs_unwritten(device: Device, emulator: Emulator) -> None:
    with (
        device.load_model(onnx_models.doubled([2, 3])) as model,
        Bound(model) as bound,
        device.create_stream() as stream,
    ):
        bound.fill([X])
        emulator.faults.fail_task("aclmdlExecuteAsync", 507015)
        model.execute_async(bound.input_set, bound.output_set, stream)
        with pytest.raises(AclError) as caught:
            stream.synchronize()
        assert caught.value.code == 507015
        assert classify(caught.value).reason == "DEVICE_LOST"
        (y,) = bound.results()
        assert not np.array_equal(y, X + X)
        model.execute_async(bound.input_set, bound.output_set, stream)
        stream.synchronize()
        np.testing.assert_array_equal(bound.results()[0], X + X)


def test_failed_synchronous_execution(device: Device, emulator: Emulator) -> None:
    with device.load_model(onnx_models.doubled([2, 3])) as model, Bound(model) as bound:
        emulator.faults.fail_call("aclmdlExecute", 507011)
        with pytest.raises(AclError) as caught:
            bound.run([X])
        assert caught.value.code == 507011
        np.testing.assert_array_equal(bound.run([X])[0], X + X)


def test_datasets_are_checked_before_the_call(device: Device, emulator: Emulator) -> None:
    with (
        device.load_model(onnx_models.rows(2)) as model,
        device.allocate(4096) as room,
        device.create_stream() as stream,
    ):
        address = room.address

        def datasets(inputs: list[int], outputs: list[int]) -> tuple[Dataset, Dataset]:
            return tuple(  # type: ignore[return-value]
                Dataset.create(device.library, [(address + 512 * i, size) for i, size in enumerate(sizes)])
                for sizes in (inputs, outputs)
            )

        for inputs, outputs, message in (
            ([], [24, 8], "0 buffers; the model has 1 inputs"),
            ([24, 24], [24, 8], "2 buffers; the model has 1 inputs"),
            ([24], [24], "1 buffers; the model has 2 outputs"),
            ([23], [24, 8], "'x' has 23 bytes; the model takes 24"),
            ([24], [24, 7], "'total' has 7 bytes; the model takes 8"),
        ):
            input_set, output_set = datasets(inputs, outputs)
            with input_set, output_set:
                for attempt in (
                    lambda ins=input_set, outs=output_set: model.execute(ins, outs),
                    lambda ins=input_set, outs=output_set: model.execute_async(ins, outs, stream),
                ):
                    with pytest.raises(InvalidArgument, match=message) as caught:
                        attempt()
                    assert caught.value.reason == "DATASET_MISMATCH"
        assert not emulator.counters.calls["aclmdlExecute"]
        input_set, output_set = datasets([100], [200, 300])
        output_set.update(0, address + 1024, 200)
        output_set.update(1, address + 2048, 300)
        with input_set, output_set:
            device.set_memory(room, 0, 4096, 0)
            model.execute(input_set, output_set)
            input_set.update(0, address, 3)  # a change is checked again
            with pytest.raises(InvalidArgument, match="3 bytes"):
                model.execute(input_set, output_set)


def test_dataset_entries_can_be_moved(device: Device) -> None:
    with (
        device.load_model(onnx_models.doubled([2, 3])) as model,
        Bound(model) as bound,
        device.allocate(24) as other,
    ):
        bound.fill([X])
        bound.output_set.update(0, other.address, 24)
        model.execute(bound.input_set, bound.output_set)
        np.testing.assert_array_equal(read(device, other, np.float32, (2, 3)), X + X)
        for index in (-1, 1):
            with pytest.raises(InvalidArgument, match="1 buffers"):
                bound.output_set.update(index, other.address, 24)


# ---- unknown shapes


def test_output_known_only_after_the_run(device: Device, emulator: Emulator) -> None:
    with device.load_model(onnx_models.nonzero()) as model:
        found = model.description
        assert found.unknown_shape
        assert found.gears == ()
        assert found.outputs[0].shape == (1, -1)
        x = np.array([0, 1, 0, 2, 3, 0], np.float32)
        with device.allocate(24) as room, device.create_stream() as stream:
            write(device, room, x)
            with (
                Dataset.create(device.library, [(room.address, 24)]) as inputs,
                Dataset.create(device.library, [(0, 0)]) as outputs,
            ):
                with pytest.raises(InvalidArgument, match="no buffer"):
                    model.execute_async(inputs, outputs, stream)
                for _ in range(2):
                    model.execute(inputs, outputs)
                    shape = outputs.shape(0)
                    assert shape == (1, 3)
                    address, size_bytes = outputs.take(0)
                    assert outputs.take(0) == (0, 0)
                    with device.adopt(address, size_bytes) as result:
                        assert result.size_bytes >= 24
                        np.testing.assert_array_equal(read(device, result, np.int64, shape), [[1, 3, 4]])


def test_input_given_its_shape_for_the_run(device: Device) -> None:
    data = onnx_models.doubled(["rows", "columns"])
    with device.load_model(data) as model:
        found = model.description
        assert found.unknown_shape
        assert found.inputs[0].shape == (-1, -1)
        with (
            device.allocate(256) as room,
            device.allocate(256) as result,
            Dataset.create(device.library, [(room.address, 256)]) as inputs,
            Dataset.create(device.library, [(result.address, 256)]) as outputs,
        ):
            with pytest.raises(InvalidArgument, match="real shape"):
                model.execute(inputs, outputs)
            for shape in ((2, 3), (8, 8), (1, 5)):
                x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
                write(device, room, x)
                inputs.set_shape(0, x.dtype, shape)
                model.execute(inputs, outputs)
                assert outputs.shape(0) == shape
                np.testing.assert_array_equal(read(device, result, np.float32, shape), x + x)
            inputs.set_shape(0, np.dtype(np.float32), (9, 8))
            with pytest.raises(InvalidArgument, match="256 bytes; the model takes 288"):
                model.execute(inputs, outputs)
            inputs.set_shape(0, np.dtype(np.float32), (9,))
            with pytest.raises(InvalidArgument, match=r"\[9\]; the model takes \[-1, -1\]"):
                model.execute(inputs, outputs)


def test_shape_of_an_untouched_entry(device: Device) -> None:
    with (
        Dataset.create(device.library, [(4096, 8)]) as dataset,
        pytest.raises(InvalidArgument, match="has no shape"),
    ):
        dataset.shape(0)


# ---- data types


@pytest.mark.parametrize(
    "dtype",
    [
        np.bool_,
        np.uint8,
        np.int8,
        np.uint16,
        np.int16,
        np.uint32,
        np.int32,
        np.uint64,
        np.int64,
        np.float16,
        ml_dtypes.bfloat16,
        np.float32,
        np.float64,
    ],
)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 3)])
def test_every_data_type(device: Device, dtype: Any, shape: tuple[int, ...]) -> None:
    from onnx import helper

    x = (np.arange(6).reshape(2, 3) % 2).astype(dtype) if shape == (2, 3) else np.ones(shape, dtype)
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    with device.load_model(onnx_models.identity(elem_type, shape)) as model:
        assert model.description.inputs[0].dtype == model.description.outputs[0].dtype == np.dtype(dtype)
        assert model.description.gears[0].output_shapes == (shape,)
        with Bound(model) as bound:
            (y,) = bound.run([x])
            assert y.shape == shape
            assert y.tobytes() == x.tobytes()


def test_strings_are_refused(device: Device) -> None:
    with pytest.raises((AclError, Unimplemented)) as caught:
        device.load_model(onnx_models.identity(TensorProto.STRING, [2]))
    if isinstance(caught.value, AclError):
        assert "STRING" in caught.value.text.upper()
