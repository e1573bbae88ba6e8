"""All conformance cases, in the order in which they are defined."""

from __future__ import annotations

from tests.netns.conformance import data as conformance_data
from tests.netns.conformance import ends as conformance_ends
from tests.netns.conformance import opening as conformance_opening
from tests.netns.conformance.case import CASES

MODULES = (conformance_opening, conformance_data, conformance_ends)  # importing them registers their cases

__all__ = ["CASES", "MODULES"]
