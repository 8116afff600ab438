"""Decoders that hang, crash or ask for all memory cost their own series, and nothing else."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, RLELossless

from dicom import decoding
from dicom.decoding import Decoder
from dicom.deflate import INFLATED_BYTES, dataset_inflates_too_far
from dicom.errors import DecoderLimitsError, Outcome, UndecodableError
from dicom.series import read_study
from dicom.volume import read_volume

Make = Callable[..., Any]


def read(flair: Any) -> Any:  # noqa: ANN401
    (series,) = read_study(flair.folder).series
    return read_volume(series)


def test_a_child_decodes_what_this_process_would(make_flair_series: Make) -> None:
    flair = make_flair_series(transfer_syntax_uid=JPEG2000Lossless)
    with Decoder() as decoder:
        for path in flair.paths[:2]:
            (pixels,) = decoder.frames(path, None)
            assert np.array_equal(pixels, dcmread(path).pixel_array)
        assert decoder._process is not None
        child = decoder._process.pid
    assert not Path(f"/proc/{child}").exists()


def test_uncompressed_pixels_need_no_child(
    make_flair_series: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: Decoder) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(Decoder, "_start", never)
    read(make_flair_series())


def test_a_decoder_that_does_not_end_is_ended(make_flair_series: Make) -> None:
    flair = make_flair_series(transfer_syntax_uid=RLELossless)
    pipe = flair.folder / "never.dcm"
    os.mkfifo(pipe)  # whoever opens it waits for a writer who does not come
    hurried, late = (
        Decoder(seconds_per_frame=0.5),
        pytest.raises(DecoderLimitsError, match="longer"),
    )
    with hurried as decoder, late:
        list(decoder.frames(pipe, None))
    with Decoder() as decoder:  # and the next one is served
        assert len(list(decoder.frames(flair.paths[0], None))) == 1


def test_a_decoder_that_crashes_is_told_of(make_flair_series: Make) -> None:
    flair = make_flair_series(transfer_syntax_uid=RLELossless)
    with Decoder() as decoder:
        assert len(list(decoder.frames(flair.paths[0], None))) == 1
        assert decoder._process is not None
        decoder._process.kill()
        with pytest.raises(DecoderLimitsError, match="SIGKILL"):
            list(decoder.frames(flair.paths[1], None))
        assert len(list(decoder.frames(flair.paths[1], None))) == 1


def bomb(path: Path, side: int) -> None:
    """A code stream that declares another size than the header, and is decoded by its own."""
    image = dcmread(path)
    stream = bytearray(image.PixelData)
    at = stream.index(b"\xff\x51") + 6  # SIZ: Xsiz, Ysiz, then the offsets (ISO 15444-1 A.5.1)
    size = side.to_bytes(4, "big")
    stream[at : at + 8] = size + size
    stream[at + 16 : at + 24] = size + size  # one tile
    image.PixelData = bytes(stream)
    image.save_as(path)


def test_a_decompression_bomb_is_a_reason_and_costs_no_memory_here(
    make_flair_series: Make,
) -> None:
    flair = make_flair_series(transfer_syntax_uid=JPEG2000Lossless)
    bomb(flair.paths[0], 60_000)  # 7 GB of 16 bits
    with pytest.raises(UndecodableError) as caught:
        read(flair)
    assert caught.value.reason in ("decoder-limits", "undecodable-pixels")
    assert caught.value.outcome is Outcome.NOT_ANALYSED


def test_memory_has_a_limit(make_flair_series: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    flair = make_flair_series(rows=512, columns=512, slices=3, transfer_syntax_uid=RLELossless)
    monkeypatch.setattr(decoding, "MEMORY_MB", 1)
    with Decoder(memory_mb=100) as decoder, pytest.raises(DecoderLimitsError):
        list(decoder.frames(flair.paths[0], None))


def test_a_deflated_bomb_is_measured_not_unpacked() -> None:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = bytes(1 << 20)
    packed = b"".join(squeeze.compress(block) for _ in range((INFLATED_BYTES >> 20) + 1))
    packed += squeeze.flush()
    assert len(packed) < INFLATED_BYTES // 500
    assert dataset_inflates_too_far(BytesIO(packed))
    assert not dataset_inflates_too_far(BytesIO(packed[: len(packed) // 2]))
    assert not dataset_inflates_too_far(BytesIO(b"no deflate at all"))
