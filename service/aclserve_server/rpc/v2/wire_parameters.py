"""The parameters of requests, inputs and outputs: reads the maps and says what their entries mean here.

A parameter that has no meaning is refused by name, because a client that sends one counts on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aclserve_server.engine.items import RegionSlice
from aclserve_server.rpc.varint import read_varint, to_int64
from aclserve_server.rpc.wire_walk import Walk

Value = tuple[str, bool | int | str | None]
"""A parameter's kind and value: a double has no use here and no value, and a parameter may be without either."""

BOOL, INT64, STRING, DOUBLE, UINT64 = "bool", "int64", "string", "double", "uint64"
NOTHING: Value = ("nothing", None)

REGION, REGION_BYTES, REGION_OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
WITHOUT_EFFECT = frozenset({"binary_data", "binary_data_size"})
"""Parameters of tensors that belong to the protocol over HTTP."""

_INCOMPLETE = "SHARED_MEMORY_INCOMPLETE"
_OF_REQUESTS = "timeout, priority and triton_enable_empty_final_response"
_OF_INPUTS = f"{REGION}, {REGION_BYTES} and {REGION_OFFSET}"
_OF_OUTPUTS = f"classification, {_OF_INPUTS}"


def shown(text: str) -> str:
    """A name from a client as messages quote it."""
    return repr(text if len(text) <= 100 else text[:97] + "...")


class ParameterWalk(Walk):
    """Reads parameters. What is wrong with one is left in `error`."""

    __slots__ = ()

    def parameter(self, pos: int, end: int, found: dict[str, Value], depth: int) -> None:
        """One entry of a map of parameters: the last one of a key counts.

        As in protobuf's own parser, an entry that holds anything unknown is an unknown field as a whole.
        """
        key, value, plain = "", NOTHING, True
        while pos < end:
            tag, pos = self.tag(pos)
            if tag == 0x0A or tag == 0x12:
                pos, stop = self.span(pos, end)
                if tag == 0x0A:
                    key = self.text(pos, stop, "name of a parameter")
                else:
                    value = self.value(pos, stop, value, depth - 1)
                pos = stop
            else:
                pos, plain = self.skip(pos, end, tag, depth), False
        self.finish(pos, end)
        if plain:
            found[key] = value

    def value(self, pos: int, end: int, value: Value, depth: int) -> Value:
        """An InferParameter on top of an earlier one: the last member of its oneof counts."""
        while pos < end:
            tag, pos = self.tag(pos)
            if tag == 0x08:
                number, pos = read_varint(self.message, pos)
                value = (BOOL, number != 0)
            elif tag == 0x10:
                number, pos = read_varint(self.message, pos)
                value = (INT64, to_int64(number))
            elif tag == 0x28:
                number, pos = read_varint(self.message, pos)
                value = (UINT64, number)
            elif tag == 0x1A:
                pos, stop = self.span(pos, end)
                value = (STRING, self.text(pos, stop, "value of a parameter"))
                pos = stop
            else:
                pos = self.skip(pos, end, tag, depth)
                value = (DOUBLE, None) if tag == 0x21 else value
        self.finish(pos, end)
        return value

    def request_parameters(self, found: Mapping[str, Value]) -> tuple[float | None, int, bool]:
        """The timeout in seconds, the priority (0: none stated) and triton_enable_empty_final_response."""
        timeout_s: float | None = None
        priority, empty_final = 0, False
        for key, value in found.items():
            if key == "timeout":
                microseconds = self.number(key, value)
                timeout_s = microseconds / 1e6 if microseconds else None
            elif key == "priority":
                level = self.number(key, value, (INT64, UINT64))
                priority = 4 - min(level, 3) if level else 0
            elif key == "triton_enable_empty_final_response":
                empty_final = self.of_kind(key, value, (BOOL,)) and value[1] is True
            elif key == "sequence_id":
                if self.of_kind(key, value, (INT64, STRING)) and value[1]:
                    self.refuse_sequence(f"parameter 'sequence_id' is {shown(str(value[1]))}")
            elif key in ("sequence_start", "sequence_end"):
                if self.of_kind(key, value, (BOOL,)) and value[1]:
                    self.refuse_sequence(f"parameter {key!r} is true")
            elif key in ("headers", "binary_data_output"):
                self.refuse(f"parameter {key!r} is reserved; leave it out", "PARAMETER_RESERVED")
            elif key.startswith("triton_"):
                self.refuse(
                    f"parameter {shown(key)} is unknown, and names that begin with triton_ are reserved; known here "
                    f"are {_OF_REQUESTS}",
                    "PARAMETER_RESERVED",
                )
            else:
                self.refuse_unknown(key, "models here take no parameters", "requests", _OF_REQUESTS)
        return timeout_s, priority, empty_final

    def input_parameters(self, name: str, found: Mapping[str, Value]) -> RegionSlice | None:
        """Where an input's data is, if not in the message."""
        for key in found:
            if key not in (REGION, REGION_BYTES, REGION_OFFSET) and key not in WITHOUT_EFFECT:
                self.refuse_unknown(key, f"input {shown(name)} has it", "inputs", _OF_INPUTS)
        return self.region(f"input {shown(name)}", found)

    def output_parameters(self, name: str, found: Mapping[str, Value]) -> tuple[RegionSlice | None, int]:
        """Where an output is to go, if not into the message, and how many classes are wanted of it (0: values)."""
        top_k = 0
        for key, value in found.items():
            if key == "classification":
                top_k = self.number(key, value)
                if top_k == 0 and value == (INT64, 0):
                    self.refuse(
                        f"output {shown(name)} is asked for with 'classification' 0; expected 1 or more",
                        "PARAMETER_INVALID",
                    )
            elif key not in (REGION, REGION_BYTES, REGION_OFFSET) and key not in WITHOUT_EFFECT:
                self.refuse_unknown(key, f"output {shown(name)} has it", "outputs", _OF_OUTPUTS)
        region = self.region(f"output {shown(name)}", found)
        if region is not None and region.length_bytes == 0:
            self.refuse(f"output {shown(name)} has {REGION_BYTES!r} 0; expected the bytes it may take", _INCOMPLETE)
        return region, top_k

    def region(self, what: str, found: Mapping[str, Value]) -> RegionSlice | None:
        """The range of shared memory that the parameters of `what` name."""
        if REGION not in found:
            for key in (REGION_BYTES, REGION_OFFSET):
                if key in found:
                    self.refuse(f"{what} has {key!r} without {REGION!r}; state the region's name", _INCOMPLETE)
            return None
        if not self.of_kind(REGION, found[REGION], (STRING,)):
            return None
        name = str(found[REGION][1])
        if not name:
            self.refuse(f"{what} has an empty {REGION!r}; state the name it was registered with", _INCOMPLETE)
        if REGION_BYTES not in found:
            self.refuse(f"{what} has {REGION!r} without {REGION_BYTES!r}; state the bytes of the tensor", _INCOMPLETE)
        length = self.number(REGION_BYTES, found.get(REGION_BYTES, (INT64, 0)))
        return RegionSlice(name, self.number(REGION_OFFSET, found.get(REGION_OFFSET, (INT64, 0))), length)

    def number(self, key: str, value: Value, kinds: Iterable[str] = (INT64,)) -> int:
        """A number of 0 or more; 0 for what is refused."""
        if not self.of_kind(key, value, kinds):
            return 0
        number = int(value[1] or 0)
        if number < 0:
            self.refuse(f"parameter {key!r} is {number}; expected 0 or more", "PARAMETER_INVALID")
            return 0
        return number

    def of_kind(self, key: str, value: Value, kinds: Iterable[str]) -> bool:
        """Whether a value is of one of the kinds its parameter takes; refused where it is not."""
        if value[0] in kinds:
            return True
        expected = " or ".join(f"{kind} ({kind}_param)" for kind in kinds)
        self.refuse(f"parameter {key!r} is of type {value[0]}; expected {expected}", "PARAMETER_TYPE_MISMATCH")
        return False

    def refuse_sequence(self, what: str) -> None:
        self.refuse(
            f"{what}, but there are no models here that keep state between requests; leave out sequence_id, "
            "sequence_start and sequence_end",
            "SEQUENCES_UNSUPPORTED",
        )

    def refuse_unknown(self, key: str, why: str, owner: str, known: str) -> None:
        self.refuse(
            f"parameter {shown(key)} is unknown ({why}); leave it out. Known for {owner}: {known}",
            "PARAMETER_UNKNOWN",
        )
