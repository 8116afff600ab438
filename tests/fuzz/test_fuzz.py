"""Some hundred cases in every run of the suite; `make fuzz` takes 5,000."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from tests.fuzz.judges import CORPUS, Headers, Listener, Pixels
from tests.fuzz.seeds import small_series

SEEDS = st.integers(min_value=0, max_value=2**48)
HURRIED = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def headers(folder: Path) -> Headers:
    return Headers(small_series(folder / "plain"), folder)


@pytest.fixture(scope="module")
def pixels(folder: Path) -> Iterator[Pixels]:
    syntaxes = (JPEG2000Lossless, JPEGLSLossless, RLELossless)
    paths = [small_series(folder / f"c{n}", one)[0] for n, one in enumerate(syntaxes)]
    pixels = Pixels(paths, folder)
    yield pixels
    pixels.decoder.__exit__(None, None, None)


@pytest.fixture(scope="module")
def listener(folder: Path) -> Iterator[Listener]:
    with Listener(folder) as listener:
        yield listener


@settings(HURRIED, max_examples=200)
@given(seed=SEEDS)
def test_any_damaged_header_comes_to_a_reason(headers: Headers, seed: int) -> None:
    headers.judge(headers.case(seed))


@settings(HURRIED, max_examples=100)
@given(seed=SEEDS)
def test_any_damaged_pixels_come_to_a_reason(pixels: Pixels, seed: int) -> None:
    pixels.judge(pixels.case(seed))


@settings(HURRIED, max_examples=300)
@given(seed=SEEDS)
def test_the_listener_outlives_any_conversation(listener: Listener, seed: int) -> None:
    listener.judge(listener.case(seed))


def test_a_real_sender_gets_through_afterwards_and_memory_is_flat(
    listener: Listener, folder: Path
) -> None:
    before = listener.rss_mb()
    for seed in range(300):
        listener.judge(listener.case(seed))
    listener.serves(small_series(folder / "sent")[0])
    assert listener.rss_mb() < before + 8, "MB"


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.bin")), ids=lambda path: path.stem)
def test_what_was_found_once_is_a_reason_now(
    path: Path, headers: Headers, pixels: Pixels, listener: Listener
) -> None:
    judges = {"header": headers, "pixels": pixels, "pdu": listener}
    judges[path.stem.split("-")[0]].judge(path.read_bytes())
    listener.serves()
