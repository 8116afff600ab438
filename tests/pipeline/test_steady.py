"""An ensemble whose device fails. No GPU was there: a real ensemble on the CPU raises what torch
raises on one, at the place where a batch goes through the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from config.settings import PipelineSettings
from dicom.errors import Outcome
from pipeline.ensemble import DeviceError, Ensemble, trouble_of_device
from pipeline.model_pack import ModelPack
from pipeline.steady import DeviceUnavailableError, SteadyEnsemble
from tests.pipeline.tiny_pack import heads, make_pack, make_plans

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
GONE = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> ModelPack:
    return make_pack(tmp_path_factory.mktemp("packs") / "tiny", make_plans())


@pytest.fixture(scope="module")
def images() -> Any:  # noqa: ANN401
    return heads(slices=4)


@pytest.fixture(scope="module")
def expected(pack: ModelPack, images: Any) -> Any:  # noqa: ANN401
    return Ensemble.load(pack, device="cpu", threads=1).segment(images).probability


class Trouble:
    """Raises from the network's forward pass, for batches larger than what still fits."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, error: Exception, fits: int = 0, times: int = 10**6
    ) -> None:
        self.batches: list[int] = []
        plain = Ensemble._forward

        def forward(ensemble: Ensemble, batch: torch.Tensor) -> torch.Tensor:
            self.batches.append(len(batch))
            if len(batch) > fits and sum(one > fits for one in self.batches) <= times:
                raise error
            return plain(ensemble, batch)

        monkeypatch.setattr(Ensemble, "_forward", forward)


def steady(pack: ModelPack, *, allow_cpu: bool) -> SteadyEnsemble:
    settings = PipelineSettings(device="cpu", threads=1, allow_cpu_fallback=allow_cpu)
    return SteadyEnsemble.load(pack, settings)


def test_out_of_memory_is_tried_again_one_slice_at_a_time(
    pack: ModelPack,
    images: Any,  # noqa: ANN401
    expected: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble = steady(pack, allow_cpu=False)
    trouble = Trouble(monkeypatch, OUT_OF_MEMORY, fits=1)
    found = ensemble.segment(images).probability
    assert trouble.batches[0] == 2, "two slices at a time on a CPU"
    assert set(trouble.batches[1:]) == {1}
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not ensemble.worn


@pytest.mark.parametrize(("error", "tried"), [(OUT_OF_MEMORY, [2, 1]), (GONE, [2])])
def test_a_device_that_fails_holds_the_case_unless_the_cpu_is_allowed(
    pack: ModelPack,
    images: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    tried: list[int],
) -> None:
    ensemble = steady(pack, allow_cpu=False)
    trouble = Trouble(monkeypatch, error)
    with pytest.raises(DeviceUnavailableError, match="allow_cpu_fallback is off") as raised:
        ensemble.segment(images)
    assert (raised.value.reason, raised.value.outcome) == ("device-unavailable", Outcome.HELD)
    assert trouble.batches == tried, "a device that is gone is not asked again"
    assert ensemble.worn


def test_on_the_cpu_the_result_is_the_one_that_the_device_would_have_given(
    pack: ModelPack,
    images: Any,  # noqa: ANN401
    expected: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble = steady(pack, allow_cpu=True)
    before = ensemble.settings()
    Trouble(monkeypatch, GONE, times=1)
    np.testing.assert_allclose(ensemble.segment(images).probability, expected, atol=1e-6)
    assert ensemble.settings() == before
    assert ensemble.worn, "the next case gets a new process, and the device another chance"


def test_the_cpu_mirrors_as_the_device_would_have(pack: ModelPack) -> None:
    """`auto` is on with a GPU: a fallback that left it out would give other UIDs and pixels."""
    settings = PipelineSettings(device="cpu", mirroring="on", allow_cpu_fallback=True)
    ensemble = SteadyEnsemble.load(pack, settings)
    assert ensemble._on_cpu is not None
    assert ensemble._on_cpu().settings() == ensemble.settings()
    missing = PipelineSettings(device="cuda:7", allow_cpu_fallback=True)
    assert SteadyEnsemble.load(pack, missing).settings()["mirroring_axes"] == [0, 1]


def test_a_device_that_is_not_there_at_start_is_an_error_unless_the_cpu_is_allowed(
    pack: ModelPack,
) -> None:
    with pytest.raises(DeviceError, match="cuda:7"):
        SteadyEnsemble.load(pack, PipelineSettings(device="cuda:7"))


def test_an_error_of_our_own_is_none_of_the_device(
    pack: ModelPack,
    images: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble = steady(pack, allow_cpu=True)
    Trouble(monkeypatch, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        ensemble.segment(images)
    assert not ensemble.worn
    assert trouble_of_device(RuntimeError("cuDNN says: shapes")) == ""
    assert trouble_of_device(RuntimeError("CUDA error: device-side assert triggered")) == "gone"
