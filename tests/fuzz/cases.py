"""Cases that know the structure of what they damage, each made from a number alone.

A number is a case: what Hypothesis finds or a long run prints can be replayed by it, and every
case that ever failed stands in `corpus/` as the bytes that it was.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from tests.raw_peer import (
    ECHO_CONTEXT,
    STORE_CONTEXT,
    association_request,
    command,
    echo_request,
    fragment,
    padded,
    pdu,
    store_request,
)

_LENGTHS = (0, 1, 2, 3, 7, 8, 0xFF, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFF)
_VRS = (
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OW PN SH SL SQ SS ST TM UI UL UN US UT ZZ"
).split()
_TEXTS = (b"", b"\0", b"-0", b"1e400", b"nan", b"inf", b"1\\2\\3", b"\\" * 40, b"\xff\xfe\xfd",
          b"65535", b"-1", b"0", b"99999999999999999999", b"../../x", b"1.2.3", b" " * 70,
          b"2" * 300, b"\x1b$B!!", "Ä^Ö".encode())  # fmt: skip


def elements(dataset: bytes) -> list[tuple[int, int]]:
    """Where each top-level element of an explicit little endian dataset begins and ends."""
    found, at = [], 0
    while at + 8 <= len(dataset):
        vr = dataset[at + 4 : at + 6]
        if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"UC", b"UR"):
            (length,) = struct.unpack_from("<L", dataset, at + 8)
            head = 12
        else:
            (length,) = struct.unpack_from("<H", dataset, at + 6)
            head = 8
        whole = len(dataset)
        end = whole if length == 0xFFFF_FFFF else min(whole, at + head + length)
        found.append((at, end))
        at = end
    return found


def _element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    said = len(value) if length is None else length
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD"):
        return head + struct.pack("<HL", 0, said & 0xFFFF_FFFF) + value
    return head + struct.pack("<H", said & 0xFFFF) + value


def damaged_header(chance: random.Random, dataset: bytes) -> bytes:
    """A dataset with one to four damages, each of one element."""
    for _ in range(chance.randint(1, 4)):
        places = elements(dataset)
        if not places:
            return dataset
        begin, end = chance.choice(places)
        before, whole, after = dataset[:begin], dataset[begin:end], dataset[end:]
        group, number = struct.unpack_from("<HH", whole.ljust(8, b"\0"))
        tag, vr = group << 16 | number, whole[4:6].ljust(2, b" ")
        value = whole[8:]
        damage = chance.randrange(10)
        if damage == 0:
            whole = b""
        elif damage == 1:
            whole = whole + whole
        elif damage == 2:
            whole = _element(tag, chance.choice(_VRS), value)
        elif damage == 3:
            whole = _element(tag, vr, chance.choice(_TEXTS))
        elif damage == 4:
            whole = _element(tag, vr, value, chance.choice(_LENGTHS))
        elif damage == 5:
            depth = chance.choice((1, 3, 50, 400))
            inner = _element(0x0008_0060, b"CS", b"MR")
            for _ in range(depth):
                item = struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner
                inner = _element(0x0040_0275, b"SQ", item)
            whole = whole + inner
        elif damage == 6:
            whole = _element(tag, b"SQ", chance.randbytes(chance.randrange(24)), 0xFFFF_FFFF)
        elif damage == 7:
            number = chance.choice((b"\0\0", b"\xff\xff", b"\1\0", b"\0\x80"))
            place = chance.choice((0x0028_0010, 0x0028_0011, 0x0028_0100, 0x0028_0101, 0x0028_0002))
            before += _element(place, b"US", number)
        elif damage == 8:
            cut = chance.randrange(len(whole) + 1)
            return before + whole[:cut]
        else:
            spoiled = bytearray(whole)
            for _ in range(chance.randint(1, 4)):
                if spoiled:
                    spoiled[chance.randrange(min(len(spoiled), 64))] = chance.randrange(256)
            whole = bytes(spoiled)
        dataset = before + whole + after
    return dataset


def damaged_stream(chance: random.Random, content: bytes, start: int) -> bytes:
    """A file whose compressed pixels, from `start` on, are spoiled."""
    spoiled = bytearray(content)
    for _ in range(chance.randint(1, 12)):
        at = chance.randrange(start, len(spoiled))
        if chance.random() < 0.3:
            at = min(start + chance.randrange(64), len(spoiled) - 1)  # where decoders read sizes
        spoiled[at] = chance.choice((0, 0xFF, 0x7F, chance.randrange(256)))
    if chance.random() < 0.2:
        del spoiled[chance.randrange(start, len(spoiled)) :]
    return bytes(spoiled)


def conversation(chance: random.Random) -> bytes:
    """Everything one peer says, from its first byte on."""
    said = [_request(chance)]
    said += [chance.choice(_SAYINGS)(chance) for _ in range(chance.randrange(5))]
    content = b"".join(said)
    if chance.random() < 0.3:
        content = _flipped(chance, content)
    if chance.random() < 0.2:
        content = content[: chance.randrange(len(content) + 1)]
    return content


def _request(chance: random.Random) -> bytes:
    request = association_request(
        calling=chance.choice(("SENDER", "SENDER", "SENDER", "STRANGER")),
        called=chance.choice(("FLAIRNODE", "FLAIRNODE", "OTHER")),
        syntax=chance.choice((ExplicitVRLittleEndian, "1.2.840.10008.1.2.1.99")),
    )
    damage = chance.randrange(8)
    if damage == 0:
        return _flipped(chance, request)
    if damage == 1:  # items that claim other lengths than they have
        at = chance.randrange(74, len(request) - 4)
        return (
            request[:at] + struct.pack(">H", chance.choice(_LENGTHS) & 0xFFFF) + request[at + 2 :]
        )
    if damage == 2:
        return pdu(1, request[6 : chance.randrange(6, len(request))])
    if damage == 3:
        return chance.randbytes(chance.randrange(200))
    return request


def _flipped(chance: random.Random, content: bytes) -> bytes:
    spoiled = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        if spoiled:
            spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
    return bytes(spoiled)


def _some_pdu(chance: random.Random) -> bytes:
    return pdu(chance.randrange(0, 9), chance.randbytes(chance.randrange(40)))


def _lying_pdu(chance: random.Random) -> bytes:
    body = chance.randbytes(chance.randrange(40))
    return struct.pack(">BxL", chance.randrange(1, 8), chance.choice(_LENGTHS)) + body


def _fragments(chance: random.Random) -> bytes:
    pieces = b"".join(
        fragment(
            chance.choice((ECHO_CONTEXT, STORE_CONTEXT, 0, 255)),
            chance.randrange(5),
            chance.randbytes(chance.randrange(60)),
        )
        for _ in range(chance.randint(1, 4))
    )
    if chance.random() < 0.3:
        pieces = struct.pack(">L", chance.choice(_LENGTHS)) + pieces[4:]
    return pdu(4, pieces)


def _command(chance: random.Random) -> bytes:
    values = {
        "e0002": padded(MRImageStorage),
        "e0100": struct.pack("<H", chance.choice((1, 0x20, 0x21, 0x30, 0x100, 0x150, 0xFFF, 9))),
        "e0110": b"\1\0",
        "e0800": chance.choice((b"\1\1", b"\0\0", b"", b"\1\1\1\1")),
        "e1000": chance.choice((b"1.2.3\0", b"../../etc/passwd", b"9" * 200, b"")),
    }
    del values[chance.choice(list(values))]
    return pdu(4, fragment(chance.choice((ECHO_CONTEXT, STORE_CONTEXT)), 0b11, command(**values)))


def _object(chance: random.Random) -> bytes:
    dataset = b"".join(
        _element(tag, b"UI", padded(f"1.2.{chance.randrange(9)}"))
        for tag in (0x0008_0016, 0x0008_0018, 0x0020_000D, 0x0020_000E)
    )
    if chance.random() < 0.5:
        dataset = damaged_header(chance, dataset)
    return b"".join(store_request(MRImageStorage, f"1.2.{chance.randrange(9)}", dataset))


_SAYINGS: tuple[Callable[[random.Random], bytes], ...] = (
    lambda _: echo_request(),
    _some_pdu,
    _lying_pdu,
    _fragments,
    _command,
    _object,
    lambda _: pdu(5, bytes(4)),
    lambda _: pdu(7, bytes(4)),
)
