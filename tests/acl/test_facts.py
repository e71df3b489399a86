"""Every row, enum value, constant, struct layout and status code of the driver against the facts in facts.json."""

from __future__ import annotations

import ctypes
import inspect
import json
import re
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aclserve_server.acl import abi, types
from aclserve_server.acl.abi import PROTOTYPES, REQUIRED, Check
from aclserve_server.acl.codes import CODES, Category, lookup

FACTS: dict[str, Any] = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
FUNCTIONS: dict[str, dict[str, Any]] = {row["name"]: row for row in FACTS["functions"]}

HANDLES = {
    types.Context: "aclrtContext",
    types.Stream: "aclrtStream",
    types.Event: "aclrtEvent",
    types.ModelDesc: "aclmdlDesc",
    types.Dataset: "aclmdlDataset",
    types.DataBuffer: "aclDataBuffer",
    types.TensorDesc: "aclTensorDesc",
    types.AippParams: "aclmdlAIPP",
    types.ConfigHandle: "aclmdlConfigHandle",
    types.ExecConfigHandle: "aclmdlExecConfigHandle",
    types.ExceptionInfo: "aclrtExceptionInfo",
}
ADDRESSES = (ctypes.c_void_p, types.DevicePtr)

Shape = Any
"""A type reduced to what the calling convention and the driver's safety see, as nested tuples."""


def shape_of_fact(text: str, *, result: bool = False) -> Shape:
    """The shape a C type of the facts must have in the table."""
    base = text.removeprefix("const ").strip()
    if base in FACTS["callbacks"]:
        row = FACTS["callbacks"][base]
        return ("callback", shape_of_fact(row["result"]), *(shape_of_fact(kind) for kind, _ in row["params"]))
    if base in HANDLES.values():
        return ("handle", base) if base in FACTS["aliases"] else ("opaque", base)
    if base == "char *":
        # A text that C owns is an address; so is one that C may write to.
        return ("text",) if text.startswith("const") and not result else ("address",)
    if base == "void *":
        return ("address",)
    array = re.fullmatch(r"(\w+) \[\]\[(\d+)\]", base)
    if array:
        return ("pointer", ("array", shape_of_fact(array[1]), int(array[2])))
    if base.endswith("*"):
        target = shape_of_fact(base[:-1].strip())
        return ("handle", target[1]) if target[0] == "opaque" else ("pointer", target)
    return shape_of_value(base)


def shape_of_value(base: str) -> Shape:
    if base in FACTS["structs"]:
        return ("struct", base)
    if base in FACTS["enums"]:
        row = FACTS["enums"][base]
        return ("integer", row["size"], row["underlying"].startswith("int"))
    base = FACTS["aliases"].get(base, base)
    if base == "void":
        return ("void",)
    if base == "float":
        return ("float", 4)
    if base in ("int", "size_t"):
        return ("integer", 4, True) if base == "int" else ("integer", 8, False)
    bits = re.fullmatch(r"(u?)int(\d+)_t", base)
    assert bits, f"a type the facts do not describe: {base}"
    return ("integer", int(bits[2]) // 8, not bits[1])


def shape_of_ctype(kind: Any) -> Shape:
    """The shape of a ctypes type of the table."""
    if kind is None:
        return ("void",)
    if kind in HANDLES:
        return ("handle", HANDLES[kind])
    if kind in ADDRESSES:
        return ("address",)
    if kind is ctypes.c_char_p:
        return ("text",)
    if issubclass(kind, ctypes.Structure | ctypes.Union):
        return ("struct", kind.__name__)
    if issubclass(kind, ctypes._Pointer):
        return ("pointer", shape_of_ctype(kind._type_))
    if issubclass(kind, ctypes.Array):
        return ("array", shape_of_ctype(kind._type_), kind._length_)
    if issubclass(kind, ctypes._CFuncPtr):
        return ("callback", shape_of_ctype(kind._restype_), *(shape_of_ctype(each) for each in kind._argtypes_))
    if kind._type_ in "fd":
        return ("float", ctypes.sizeof(kind))
    return ("integer", ctypes.sizeof(kind), kind._type_ in "bhilq")


def test_table_has_exactly_the_functions_of_the_facts() -> None:
    headers = list(dict.fromkeys(FUNCTIONS[name]["header"] for name in PROTOTYPES))
    assert list(PROTOTYPES) == [name for header in headers for name in FUNCTIONS if FUNCTIONS[name]["header"] == header]
    assert set(PROTOTYPES) == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_row(name: str) -> None:
    fact, row = FUNCTIONS[name], PROTOTYPES[name]
    params = [kind for kind, _, _ in fact["params"] if kind != "..."]
    assert [shape_of_ctype(kind) for kind in row.arguments] == [shape_of_fact(kind) for kind in params]
    assert shape_of_ctype(row.result) == shape_of_fact(fact["result"], result=True)
    assert row.variadic == (len(params) != len(fact["params"]))
    assert row.since == fact["since"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_judgement_fits_the_result(name: str) -> None:
    result, check = FUNCTIONS[name]["result"], PROTOTYPES[name].check
    if result == "aclError":
        assert check is (Check.UNCHECKED if name in ("aclrtPeekAtLastError", "aclrtGetLastError") else Check.STATUS)
    elif result == "void":
        assert check is Check.VOID
    elif result == "const char *":
        assert check is Check.TEXT
    elif "Create" in name:
        assert check is Check.HANDLE
    else:
        assert check is Check.VALUE


def test_rows_stand_under_their_declarations_and_headers() -> None:
    """The comment above each row is the C declaration, and the row is in the section of its header."""
    header, comment, seen = "", "", 0
    for line in Path(abi.__file__).read_text(encoding="utf-8").splitlines():
        if line.startswith("    # ---- "):
            header, comment = line.removeprefix("    # ---- "), ""
        elif line.startswith("    # "):
            comment += line.removeprefix("    #")
        elif match := re.match(r'    "(\w+)": Prototype\(', line):
            fact = FUNCTIONS[match[1]]
            params = ", ".join(_declare(kind, name) for kind, name, _ in fact["params"]) or "void"
            assert " ".join(comment.split()) == f"{_declare(fact['result'], fact['name'])}({params})"
            assert header == fact["header"]
            comment, seen = "", seen + 1
    assert seen == len(FUNCTIONS)


def _declare(kind: str, name: str) -> str:
    if kind == "...":
        return kind
    base, bracket, dims = kind.partition("[")
    return f"{base.rstrip()}{'' if base.rstrip().endswith('*') else ' '}{name}{bracket}{dims}"


def test_required_functions_are_in_every_cann_from_5_0_3() -> None:
    assert set(PROTOTYPES) >= REQUIRED
    assert {FUNCTIONS[name]["since"] for name in REQUIRED} <= {"5.0", "5.0.2", "5.0.3"}


def test_all_handles_are_told_apart() -> None:
    found = {o for o in vars(types).values() if inspect.isclass(o) and issubclass(o, ctypes.c_void_p)}
    assert found - set(ADDRESSES) == set(HANDLES)


def _classes(*bases: type) -> dict[str, Any]:
    owned = ((name, o) for name, o in vars(types).items() if inspect.isclass(o) and o.__module__ == types.__name__)
    return {name: o for name, o in owned if issubclass(o, bases)}


def test_enums() -> None:
    ours = {name: {key: int(value) for key, value in o.__members__.items()} for name, o in _classes(IntEnum).items()}
    assert ours == {name: row["members"] for name, row in FACTS["enums"].items()}
    assert all(row["size"] == 4 for row in FACTS["enums"].values())


def test_constants() -> None:
    ours = {name: value for name, value in vars(types).items() if name.startswith("ACL_")}
    assert ours == FACTS["macros"]


@pytest.mark.parametrize("name", FACTS["structs"])
def test_struct_layout(name: str) -> None:
    fact, ours = FACTS["structs"][name], getattr(types, name)
    assert issubclass(ours, ctypes.Union if fact["kind"] == "union" else ctypes.Structure)
    assert (ctypes.sizeof(ours), ctypes.alignment(ours)) == (fact["sizeof"], fact["alignof"])
    fields = [(field, getattr(ours, field).offset, getattr(ours, field).size) for field, _ in ours._fields_]
    assert fields == [(field, offset, size) for field, _, _, offset, size in fact["fields"]]
    for (_, declared), (_, kind, dims, _, _) in zip(ours._fields_, fact["fields"], strict=True):
        for size in dims:
            assert declared._length_ == size
            declared = declared._type_
        assert shape_of_field(declared) == shape_of_fact_field(kind)


def shape_of_field(kind: Any) -> Shape:
    return ("integer", 1, True) if kind is ctypes.c_char else shape_of_ctype(kind)


def shape_of_fact_field(kind: str) -> Shape:
    if kind == "char":
        return ("integer", 1, True)
    if kind.endswith("*") and kind[:-2] in FACTS["opaque"]:
        return ("address",)
    return shape_of_fact(kind)


def test_structs_are_exactly_those_of_the_facts() -> None:
    assert set(_classes(ctypes.Structure, ctypes.Union)) == set(FACTS["structs"])


@pytest.mark.parametrize("name", FACTS["callbacks"])
def test_callback_types(name: str) -> None:
    assert shape_of_ctype(getattr(types, name)) == shape_of_fact(name)


def test_codes() -> None:
    ours = {name: [row.value, row.layer, row.category.value, row.meaning] for name, row in CODES.items()}
    assert ours == FACTS["codes"]


def test_lookup_by_number() -> None:
    values = {value for value, _, _, _ in FACTS["codes"].values()}
    for value in values:
        row = lookup(value)
        assert FACTS["codes"][row.name][0] == value
        same = {category for other, _, category, _ in FACTS["codes"].values() if other == value}
        assert same == {row.category.value}
    assert (lookup(424242).name, lookup(424242).category) == ("UNKNOWN_424242", Category.INTERNAL)


@pytest.mark.needs_shared
def test_facts_are_up_to_date(make_facts: ModuleType, shared: Path) -> None:
    """facts.json is what make_facts.py makes of the shared facts; run it again where this fails."""
    made = make_facts.render(make_facts.make(json.loads((shared / "acl" / "abi.json").read_text(encoding="utf-8"))))
    assert made == make_facts.FACTS.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ["make_facts.py", "probe.py", "recorder.py"])
def test_the_witnesses_import_nothing_of_aclserve(file: str) -> None:
    text = Path(__file__).with_name(file).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from)\s+aclserve", text, re.MULTILINE)
