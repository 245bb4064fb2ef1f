"""Values and damages that several campaigns draw from."""

from __future__ import annotations

from hypothesis import strategies as st

# Texts that mean something to a parser, a shell, a terminal, a path or a format.
ODD_TEXTS = [
    "",
    " ",
    "\0",
    "\n",
    "\r\n",
    "\x1b[2J\x1b[31m",
    "\u2028",
    "\u202e",
    "\ufeff",
    "é",
    "日本語",
    "🙂" * 50,
    "a" * 70_000,
    "..",
    "../../outside",
    "/etc/passwd",
    "/dev/zero",
    "~",
    "C:\\x",
    "a/b/c",
    "-",
    "--help",
    "%s%n",
    "{}",
    "{0.__class__}",
    "${",
    "${name}",
    "${oc.env:HOME}",
    "${oc.decode:'1'}",
    "???",
    "null",
    "~null",
    "true",
    "yes",
    "1e999",
    "-0",
    "0x1F",
    "1_000",
    "1:30",
    "2026-13-45",
    ".inf",
    "-.inf",
    ".nan",
    "!!python/object:os.system",
    "*a",
    "&a",
    "<<",
    "[",
    "{",
    "|",
    "<image>",
    "<|im_start|>",
    "<|image_pad|>",
    "\ud800",
    "a\udfffb",
]

ODD_NUMBERS = [
    0,
    1,
    -1,
    255,
    256,
    65_535,
    65_536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**40,
    10**400,
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
]

texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=30)
scalars = st.none() | st.booleans() | st.sampled_from(ODD_NUMBERS) | st.integers() | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)

# Damages of bytes, places in 0..1 of the length: (place, bit), a cut, a stretch overwritten, a stretch left out.
places = st.floats(0, 1, exclude_max=True)
flips = st.tuples(st.just("flip"), places, st.integers(0, 7))
damages = st.lists(
    flips
    | flips
    | st.tuples(st.just("cut"), places, st.just(0))
    | st.tuples(st.just("write"), places, st.binary(min_size=1, max_size=16))
    | st.tuples(st.just("drop"), places, st.integers(1, 700))
    | st.tuples(st.just("repeat"), places, st.integers(1, 700)),
    min_size=1,
    max_size=6,
)


def damaged(data: bytes, changes: list[tuple[str, float, object]]) -> bytes:
    """The bytes with the changes of `damages`."""
    new = bytearray(data)
    for kind, where, what in changes:
        place = int(where * len(new))
        if kind == "flip" and new:
            new[place] ^= 1 << int(what)  # type: ignore[call-overload]
        elif kind == "cut":
            del new[place:]
        elif kind == "write":
            new[place : place + len(what)] = what  # type: ignore[arg-type, call-overload]
        elif kind == "drop":
            del new[place : place + what]  # type: ignore[operator]
        elif kind == "repeat":
            new[place:place] = new[place : place + what]  # type: ignore[operator]
    return bytes(new)
