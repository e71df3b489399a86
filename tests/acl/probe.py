"""A stand-in for libascendcl.so, generated as C from facts.json alone, that records what arrives.

Nothing of aclserve is imported here. The system's C compiler reads the declarations (with `_Static_assert` on every
struct size and offset), so what it sees at each call is what the real library would see. Every function

- records its name, the calling thread, and per argument 64 bits of value (integers sign-extended, floats as the bits of
  a double, pointers as addresses), the text of a string, or length and FNV-1a digest of what a pointer points at;
- fills what its out-parameters point at with a pattern that tells the parameters apart;
- keeps the last callback of each type, to be called from a thread that C made;
- returns what it was told to, else 0; a status other than 0 leaves a message for aclGetRecentErrMsg in that thread.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_ARGUMENTS = 20
TEXT_BYTES = 64

_INTEGERS = {
    "char", "int", "size_t", "int8_t", "uint8_t", "int16_t", "uint16_t", "int32_t", "uint32_t", "int64_t", "uint64_t",
}  # fmt: skip

_HEAD = """\
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

"""

_SUPPORT = """\
typedef struct { uint64_t bits; uint64_t length; uint64_t digest; char text[%(text)d]; } Argument;
typedef struct { const char *name; uint64_t thread; uint64_t count; Argument arguments[%(arguments)d]; } Call;
typedef struct { uint64_t bits; double real; } Result;

static Call calls[256];
static uint64_t call_count;
static Result results[%(functions)d];
static const char *const names[] = {%(names)s};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread char message[128];
static __thread int has_message;

uint64_t probe_digest(const void *block, uint64_t length)
{
    const unsigned char *bytes = block;
    uint64_t digest = 14695981039346656037u;
    for (uint64_t i = 0; i < length; i++)
        digest = (digest ^ bytes[i]) * 1099511628211u;
    return digest;
}

static uint64_t real_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static Call *begin_call(int index)
{
    pthread_mutex_lock(&lock);
    Call *call = &calls[call_count++ %% 256];
    pthread_mutex_unlock(&lock);
    memset(call, 0, sizeof *call);
    call->name = names[index];
    call->thread = (uint64_t)pthread_self();
    return call;
}

static Argument *record_number(Call *call, uint64_t bits)
{
    Argument *argument = &call->arguments[call->count++];
    argument->bits = bits;
    return argument;
}

static Argument *record_block(Call *call, const void *pointer, uint64_t length)
{
    Argument *argument = record_number(call, (uint64_t)(uintptr_t)pointer);
    if (pointer != NULL) {
        argument->length = length;
        argument->digest = probe_digest(pointer, length);
    }
    return argument;
}

static void record_text(Call *call, const char *pointer)
{
    Argument *argument = record_number(call, (uint64_t)(uintptr_t)pointer);
    if (pointer != NULL)
        strncpy(argument->text, pointer, sizeof argument->text - 1);
}

static void fill_out(Call *call, void *pointer, uint64_t length)
{
    uint64_t position = call->count - 1;
    unsigned char *bytes = pointer;
    if (pointer != NULL)
        for (uint64_t i = 0; i < length; i++)
            bytes[i] = (unsigned char)(0x5a + 31 * position + 7 * i);
}

static int answer_status(int index)
{
    int code = (int)results[index].bits;
    if (code != 0) {
        snprintf(message, sizeof message, "E%%d: %%s refused in thread %%llu", code, names[index],
                 (unsigned long long)pthread_self());
        has_message = 1;
    }
    return code;
}

static const char *take_message(void)
{
    const char *taken = has_message ? message : NULL;
    has_message = 0;
    return taken;
}

uint64_t probe_call_count(void) { return call_count; }
const Call *probe_call(uint64_t position) { return &calls[position %% 256]; }
uint64_t probe_call_size(void) { return sizeof(Call); }

void probe_reset(void)
{
    call_count = 0;
    memset(results, 0, sizeof results);
    has_message = 0;
}

int probe_program(const char *name, uint64_t bits, double real)
{
    for (int i = 0; i < %(functions)d; i++)
        if (strcmp(names[i], name) == 0) {
            results[i].bits = bits;
            results[i].real = real;
            return 1;
        }
    return 0;
}

"""


def declare(type_text: str, name: str) -> str:
    """A C declarator: ("int64_t [][2]", "range") -> "int64_t range[][2]"."""
    base, bracket, dims = type_text.partition("[")
    base = base.rstrip()
    return f"{base}{'' if base.endswith('*') else ' '}{name}{bracket}{dims}"


def source(facts: dict[str, Any]) -> str:
    """The whole probe as one C file."""
    functions = facts["functions"]
    support = _SUPPORT % {
        "text": TEXT_BYTES,
        "arguments": MAX_ARGUMENTS,
        "functions": len(functions),
        "names": ", ".join(f'"{row["name"]}"' for row in functions),
    }
    parts = [_HEAD, *_types(facts), support, _fields(facts)]
    parts += [_callback(name, row) for name, row in facts["callbacks"].items()]
    parts += [_function(index, row, facts) for index, row in enumerate(functions)]
    return "".join(parts)


def _types(facts: dict[str, Any]) -> Iterable[str]:
    for name in facts["opaque"]:
        yield f"typedef struct {name} {name};\n"
    for name, target in facts["aliases"].items():
        yield f"typedef {target} {name};\n"
    for name, row in facts["enums"].items():
        members = ", ".join(f"{member} = {value}" for member, value in row["members"].items())
        yield f'typedef enum {{ {members} }} {name};\n_Static_assert(sizeof({name}) == {row["size"]}, "{name}");\n'
    waiting = dict(facts["structs"])
    while waiting:  # a struct comes after those it contains
        name = next(
            n for n, row in waiting.items() if not any(field[1].rstrip(" *") in waiting for field in row["fields"])
        )
        yield _struct(name, waiting.pop(name))
    for name, row in facts["callbacks"].items():
        params = ", ".join(declare(kind, param) for kind, param in row["params"])
        yield f"typedef {row['result']} (*{name})({params});\n"
    yield "\n"


def _struct(name: str, row: dict[str, Any]) -> str:
    fields = "".join(
        f" {declare(kind, field)}{''.join(f'[{size}]' for size in dims)};" for field, kind, dims, _, _ in row["fields"]
    )
    lines = [f"typedef {row['kind']} {{{fields} }} {name};\n"]
    lines.append(f'_Static_assert(sizeof({name}) == {row["sizeof"]}, "{name}");\n')
    lines.append(f'_Static_assert(_Alignof({name}) == {row["alignof"]}, "{name}");\n')
    for field, _, _, offset, size in row["fields"]:
        lines.append(f'_Static_assert(offsetof({name}, {field}) == {offset}, "{name}.{field}");\n')
        lines.append(f'_Static_assert(sizeof((({name} *)0)->{field}) == {size}, "{name}.{field}");\n')
    return "".join(lines)


def _fields(facts: dict[str, Any]) -> str:
    """One reader of struct fields by name: the last element of an array, -1 bits of what is no number or pointer."""
    lines = ["uint64_t probe_field(const char *structure, const char *field, const void *address)\n{\n"]
    for name, row in facts["structs"].items():
        lines.append(f'    if (strcmp(structure, "{name}") == 0) {{\n        const {name} *it = address;\n')
        for field, kind, dims, _, _ in row["fields"]:
            if kind in facts["structs"]:
                continue
            element = f"it->{field}" + "".join(f"[{size - 1}]" for size in dims)
            lines.append(f'        if (strcmp(field, "{field}") == 0)\n            return {_bits(kind, element)};\n')
        lines.append("    }\n")
    lines.append("    return ~(uint64_t)0;\n}\n\n")
    return "".join(lines)


def _bits(kind: str, value: str) -> str:
    if "*" in kind:
        return f"(uint64_t)(uintptr_t){value}"
    return f"real_bits({value})" if kind == "float" else f"(uint64_t)(int64_t){value}"


def _callback(name: str, row: dict[str, Any]) -> str:
    """Call the last callback of this type from a new thread: pointers get `pointer`, sizes 2^33 + 5, strings a text."""
    values = []
    for kind, _ in row["params"]:
        if kind == "const char *":
            values.append('"text from C"')
        elif "*" in kind:
            values.append(f"({kind})(uintptr_t)request->pointer")
        else:
            values.append(f"({kind})8589934597u")
    call = f"saved_{name}({', '.join(values)})"
    run = f"{call};" if row["result"] == "void" else f"request->result = (uint64_t)(int64_t){call};"
    return f"""\
static {name} saved_{name};
typedef struct {{ uint64_t pointer; uint64_t result; uint64_t thread; }} Request_{name};
static void *run_{name}(void *argument)
{{
    Request_{name} *request = argument;
    request->thread = (uint64_t)pthread_self();
    {run}
    return NULL;
}}
int probe_fire_{name}(Request_{name} *request)
{{
    pthread_t thread;
    if (saved_{name} == NULL || pthread_create(&thread, NULL, run_{name}, request) != 0)
        return 1;
    return pthread_join(thread, NULL);
}}

"""


def _function(index: int, row: dict[str, Any], facts: dict[str, Any]) -> str:
    params = [(kind, name, way) for kind, name, way in row["params"] if kind != "..."]
    variadic = len(params) != len(row["params"])
    declared = [declare(kind, name) for kind, name, _ in params] + ["..."] * variadic
    lines = [f"    Call *call_ = begin_call({index});\n"]
    for kind, name, way in params:
        lines += _record(kind, name, way, facts)
    if variadic:
        last = params[-1][1]
        lines.append(f"    va_list rest;\n    va_start(rest, {last});\n")
        lines.append(f"    if (strchr({last}, '%') != NULL)\n")
        lines.append("        record_number(call_, (uint64_t)(int64_t)va_arg(rest, int));\n    va_end(rest);\n")
    if not params:
        lines.append("    (void)call_;\n")
    lines.append(_answer(index, row))
    head = declare(row["result"], row["name"])
    return f"{head}({', '.join(declared) or 'void'})\n{{\n{''.join(lines)}}}\n\n"


def _record(kind: str, name: str, way: str, facts: dict[str, Any]) -> list[str]:
    if kind in facts["callbacks"]:
        return [f"    record_number(call_, (uint64_t)(uintptr_t){name});\n    saved_{kind} = {name};\n"]
    if kind.replace("const ", "") == "char *":
        if way == "out":
            return [
                f'    record_number(call_, (uint64_t)(uintptr_t){name});\n    strcpy({name}, "written by {name}");\n'
            ]
        return [f"    record_text(call_, {name});\n"]
    size = pointed_size(kind, facts)
    if size:
        lines = [f"    record_block(call_, {name}, {size});\n"]
        return [*lines, f"    fill_out(call_, {name}, {size});\n"] if writes(kind, way) else lines
    return [f"    record_number(call_, {_bits('*' if is_address(kind, facts) else kind, name)});\n"]


def _answer(index: int, row: dict[str, Any]) -> str:
    kind = row["result"]
    if row["name"] == "aclGetRecentErrMsg":
        told = f"(const char *)(uintptr_t)results[{index}].bits"
        return f"    return results[{index}].bits ? {told} : take_message();\n"
    if kind == "aclError":
        return f"    return answer_status({index});\n"
    if kind == "void":
        return ""
    if kind == "float":
        return f"    return (float)results[{index}].real;\n"
    pointer = "(uintptr_t)" if "*" in kind else ""
    return f"    return ({kind}){pointer}results[{index}].bits;\n"


def is_address(kind: str, facts: dict[str, Any]) -> bool:
    return "*" in kind or "[" in kind or "*" in facts["aliases"].get(kind, "")


def writes(kind: str, way: str) -> bool:
    """Does the probe fill what this pointer points at?"""
    return not kind.startswith("const ") and way in ("out", "inout")


def pointed_size(kind: str, facts: dict[str, Any]) -> int:
    """Bytes of what a parameter points at; 0 where it is no pointer, or one to an opaque object, to void or to text."""
    array = re.fullmatch(r"(\w+) \[\]\[(\d+)\]", kind)
    if array:
        return value_size(array[1], facts) * int(array[2])
    if not kind.endswith("*"):
        return 0
    base = kind.removeprefix("const ")[:-1].strip()
    if base in ("void", "char") or base in facts["opaque"]:
        return 0
    return value_size(base, facts)


def value_size(kind: str, facts: dict[str, Any]) -> int:
    kind = facts["aliases"].get(kind, kind)
    if "*" in kind:
        return 8
    if kind in facts["structs"]:
        return int(facts["structs"][kind]["sizeof"])
    if kind in facts["enums"]:
        return int(facts["enums"][kind]["size"])
    if kind in ("int", "float"):
        return 4
    if kind == "size_t":
        return 8
    bits = re.fullmatch(r"u?int(\d+)_t", kind)
    if not bits:
        raise ValueError(f"a type the facts do not describe: {kind}")
    return int(bits[1]) // 8


def pattern(position: int, size: int) -> bytes:
    """What the probe writes through the out-parameter at this position."""
    return bytes((0x5A + 31 * position + 7 * i) & 0xFF for i in range(size))


def compile_object(facts: dict[str, Any], folder: Path) -> Path:
    """Compile the probe once; libraries with chosen symbols are linked from the object file."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("a C compiler (cc) is needed to build the probe library")
    code, target = folder / "probe.c", folder / "probe.o"
    code.write_text(source(facts), encoding="utf-8")
    flags = ["-std=c11", "-O0", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror"]
    _run([compiler, *flags, "-c", str(code), "-o", str(target)])
    return target


def link(compiled: Path, library: Path, exported: Iterable[str]) -> Path:
    """A shared library at `library` that exports these functions and the probe's helpers, and nothing else."""
    library.parent.mkdir(parents=True, exist_ok=True)
    script = library.with_suffix(".map")
    script.write_text("{ global: probe_*; " + " ".join(f"{name};" for name in exported) + " local: *; };\n")
    _run(["cc", "-shared", "-pthread", f"-Wl,--version-script={script}", str(compiled), "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
