"""Seeded damage: to bytes, to texts, to plain data, as disks, editors and people with bad intent do it."""

from __future__ import annotations

import copy
import struct

HOSTILE = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e-300, 1e300, float("nan"), float("inf"),
    "", "x", "\x1b[31m", "\u202e", "\0", "../../etc/passwd", "[red]rich[/]", "9" * 400, "x" * 5000, [], {}, [[]], [None],
    [1, "a", None], {"a": 1}, {"": {}}, [float("nan")] * 3, list(range(300)),
)  # fmt: skip
"""What stands where something else should."""
SIZES = (0, 1, -1, 255, 2**16, 2**31, -(2**31), 2**63 - 1)


def damaged(data: bytes, random_, head: int | None = None) -> bytes:
    """A copy with bits flipped, bytes changed, cut out, put in or repeated, lengths overwritten, or the end cut off; of
    the first `head` bytes only, where it is given."""
    data = bytearray(data)
    for _ in range(random_.randrange(1, 8)):
        if not data:
            break
        at, size = random_.randrange(min(head or len(data), len(data))), random_.randrange(1, 20)
        kind = random_.randrange(7)
        if kind == 0:
            data[at] = random_.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << random_.randrange(8)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = random_.randbytes(size)
        elif kind == 4:
            data[at : at + 8] = struct.pack("<q", random_.choice(SIZES))
        elif kind == 5:
            data[at:at] = data[at : at + size] * random_.randrange(1, 9)
        elif random_.random() < 0.3:
            del data[at:]
    return bytes(data)


def lying(plain, random_):
    """A copy of plain data in which one to three places hold something hostile, are missing, or are doubled."""
    plain = copy.deepcopy(plain)
    for _ in range(random_.randrange(1, 4)):
        places = list(_places(plain))
        if not places:
            return random_.choice(HOSTILE)
        where, key = random_.choice(places)
        kind = random_.randrange(8)
        if kind == 0:
            del where[key]
        elif kind == 1 and isinstance(where, dict):
            where[str(random_.choice(HOSTILE))] = where[key]
        elif kind == 2 and isinstance(where, list):
            where.extend(copy.deepcopy(where))
        else:
            where[key] = copy.deepcopy(random_.choice(HOSTILE))
    return plain


def _places(plain):
    keys = plain.keys() if isinstance(plain, dict) else range(len(plain)) if isinstance(plain, list) else ()
    for key in list(keys):
        yield plain, key
        yield from _places(plain[key])
