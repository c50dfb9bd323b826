"""How movies are corrected and summed: the parameters that the source `movies` and `cryobench movies sum` share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, get_args

from cryobench.errors import ParameterError
from cryobench.io.movies.exposure import VOLTAGE
from cryobench.io.movies.gain import Flip, Mode, Turn
from cryobench.spec import ByName


@dataclass(frozen=True)
class MovieSettings:
    """Corrections of frames, in the order in which they are made."""

    gain: Annotated[str | None, ByName(), "gain reference: .mrc, .tif or .gain"] = None
    gain_mode: Annotated[Mode, ByName(), "auto: divide EER movies and by .gain files, multiply others"] = "auto"
    rotate: Annotated[Turn, ByName(), "degrees to turn the gain reference anticlockwise, row 0 at the top"] = 0
    flip: Annotated[Flip, ByName(), "then reverse the rows (ud) or columns (lr) of the gain reference"] = "none"
    defects: Annotated[
        str | None, ByName(), "bad pixels: lines `x y width height` of rectangles, or an image that is not zero there"
    ] = None
    hot: Annotated[
        float, ByName(), "standard deviations from which a pixel of the sum of all frames is hot or dead; 0: none is"
    ] = 6.0
    group: Annotated[int, ByName(), "frames that are summed to one first, for EER"] = 1
    bin: Annotated[float, ByName(), "binning by cropping in Fourier space"] = 1.0
    align: Annotated[bool, ByName(), "align the frames rigidly"] = False
    weight: Annotated[bool, ByName(), "weight the frames by their exposure; needs dose"] = False
    dose: Annotated[float | None, ByName(), "e/Å² of a frame, after `group`"] = None
    pre_dose: Annotated[float, ByName(), "e/Å² before the first frame"] = 0.0
    voltage: Annotated[int, ByName(), "kV, 300 or 200, for the exposure weights"] = 300
    pixel_size: Annotated[float | None, ByName(), "Å per pixel of a frame as stored, if the file does not say"] = None

    def __post_init__(self) -> None:
        choices = {"gain_mode": get_args(Mode), "rotate": get_args(Turn), "flip": get_args(Flip)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                wanted = ", ".join(map(str, known))
                raise ParameterError(f"movies: {name} must be one of {wanted}, got {getattr(self, name)}")
        positive = {"dose": self.dose, "pixel_size": self.pixel_size}
        for name, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise ParameterError(f"movies: {name} must be positive, got {value}")
        if self.group < 1:
            raise ParameterError(f"movies: group must be at least 1 frame, got {self.group}")
        if not 1 <= self.bin < math.inf:
            raise ParameterError(f"movies: bin must be at least 1, got {self.bin}")
        if not 0 <= self.hot < math.inf or not 0 <= self.pre_dose < math.inf:
            raise ParameterError(f"movies: hot and pre_dose must not be negative, got {self.hot} and {self.pre_dose}")
        if self.weight and self.dose is None:
            raise ParameterError("movies: weight=true needs dose, the e/Å² of a frame")
        if self.weight and self.voltage not in VOLTAGE:
            known = " and ".join(map(str, VOLTAGE))
            raise ParameterError(f"movies: critical exposures are known at {known} kV, got voltage={self.voltage}")

    @property
    def interpolates(self) -> bool:
        """Whether pixels of a half are combinations of counts of other pixels."""
        return self.bin > 1 or self.align or self.weight
