"""Time and chance from outside, so that tests can make hours pass at once."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Clock:
    """`now`: seconds since 1970; `elapsed`: seconds that only ever grow; `chance`: uniform in [0, 1)."""

    now: Callable[[], float] = time.time
    elapsed: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random
