"""All conformance cases, in the order in which they are defined."""

from __future__ import annotations

import conformance_data
import conformance_ends
import conformance_opening
from conformance_case import CASES

MODULES = (conformance_opening, conformance_data, conformance_ends)  # importing them registers their cases

__all__ = ["CASES", "MODULES"]
