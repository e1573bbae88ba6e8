"""The lab of a campaign: built anew when its conditions change or when something went wrong in it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from nfq_failover.lab.campaign.driver import LabDriver
from nfq_failover.lab.state import Options


class CampaignLab:
    """A context manager around the lab called `name`: nothing of it is there before, and nothing after."""

    def __init__(self, name: str, ports: str, say: Callable[[str], None]) -> None:
        self.driver = LabDriver(name)
        self.seed = 0  # of the lab that stands
        self._ports = ports
        self._say = say
        self._stands: Options | None = None

    def __enter__(self) -> CampaignLab:
        self.driver.clear()  # what a campaign left behind that was killed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.driver.clear()

    def ready(self, options: Options, seed: str, what: str) -> None:
        """A lab with these options stands and serves the workloads; `seed` decides the scramble of a new one."""
        if self._stands == options:
            return
        self.spoilt()
        self.seed = random.Random(f"{seed}/lab").getrandbits(32)
        self._say(f"lab: {what}, seed {self.seed}")
        self.driver.up(options, self.seed)
        self.driver.serve_workloads(self._ports)
        self._stands = options

    def spoilt(self) -> None:
        """The next run deserves a lab that nothing has happened to."""
        self.driver.clear()
        self._stands = None

    def keep(self, place: Path, record: dict[str, Any], oddities: Iterable[str], capture: Path) -> None:
        """Puts all that there is of an odd run into the directory `place`: logs, state, capture, record."""
        shutil.rmtree(place, ignore_errors=True)
        self.driver.keep_logs(place)
        for path in capture.parent.glob(f"{capture.name}*"):
            shutil.copy(path, place)
        (place / "record.json").write_text(json.dumps(record, indent=2) + "\n")
        self._say(f"  kept in {place}: {'; '.join(oddities)}")
