"""[device.NAME.deliver] of the fleet file: where the last good engines of a device go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.delivery.deepstream import NetworkType
from pipeline.errors import ConfigError
from pipeline.option import FINITE, check_bounds, option

Target = Literal["", "triton", "deepstream", "cpp"]


@dataclass(frozen=True)
class Deliver:
    """[device.NAME.deliver]: as `trtforge deliver` takes it."""

    to: Target = option("", "triton, deepstream or cpp; empty: engines are delivered nowhere")
    folder: str = option("", "Triton's model repository, or where each model gets a folder; from this file's folder")
    max_batch: int = option(0, "triton: largest batch; 0: the engine's")
    network_type: NetworkType = option("other", "deepstream: what the outputs are")

    def __post_init__(self) -> None:
        """Check that it is whole, and the bounds; ConfigError."""
        check_bounds(self, max_batch=(0, FINITE))
        if bool(self.to) != bool(self.folder):
            missing, example = ("folder", '"models"') if self.to else ("to", '"triton"')
            raise ConfigError(f"{missing} is missing; write for example {missing} = {example}")
        if self.max_batch and self.to != "triton":
            raise ConfigError("max_batch: has an effect only with to = 'triton'; drop it")
        if self.network_type != "other" and self.to != "deepstream":
            raise ConfigError("network_type: has an effect only with to = 'deepstream'; drop it")

    @property
    def is_shared(self) -> bool:
        """Whether engines of several devices lie in one place, from which each takes its own."""
        return self.to == "triton"

    def words(self, names: list[str], model: str, plan: str, folder: str) -> Iterator[str]:
        """The arguments of `trtforge` that deliver the baselines of a model; ``folder``: where to."""
        yield from ("deliver", *names, "--to", self.to, folder)
        if self.to == "triton":
            yield from ("--as", model)
            yield from ("--max-batch", str(self.max_batch)) if self.max_batch else ()
        else:
            yield from ("--plan", plan)
        if self.to == "deepstream":
            yield from ("--network-type", self.network_type)


def check_places(places: dict[str, Deliver]) -> None:
    """Raise ConfigError where two devices deliver to one place, and one would replace what the other wrote."""
    seen: dict[str, tuple[str, Deliver]] = {}
    for device, place in places.items():
        if not place.to:
            continue
        other, before = seen.setdefault(place.folder.rstrip("/"), (device, place))
        if other != device and not (place.is_shared and place == before):
            raise ConfigError(
                f"[device.{device}.deliver] folder: [device.{other}.deliver] names '{place.folder}' too"
                f"{', with other keys; write the same' if place.to == before.to == 'triton' else '; name another'}"
            )
