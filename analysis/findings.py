"""Findings: what a reader must know before believing a fit. Typed, with numbers and a remedy.

A finding never stops an analysis (a bad table does, as a UserError). It goes to the terminal, into `law.json`
under `warnings`, and into the report. The checks are in `table_findings` (the runs), `isoflop_findings` (Approach 2),
`fit_findings` (the fitted law) and `identifiability` (whether the runs determine it).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Code(StrEnum):
    """Every kind of finding."""

    AT_EDGE = "AT_EDGE"
    NON_POSITIVE_CURVATURE = "NON_POSITIVE_CURVATURE"
    OFF_CENTRE = "OFF_CENTRE"
    TOO_FEW_BUDGETS = "TOO_FEW_BUDGETS"
    TOO_FEW_POINTS = "TOO_FEW_POINTS"
    NO_BUDGETS = "NO_BUDGETS"
    AT_BOUND = "AT_BOUND"
    NOT_CONVERGED = "NOT_CONVERGED"
    UNIDENTIFIED = "UNIDENTIFIED"
    MULTIMODAL = "MULTIMODAL"
    LOW_R_SQUARED = "LOW_R_SQUARED"
    EXTRAPOLATION = "EXTRAPOLATION"
    APPROACHES_DISAGREE = "APPROACHES_DISAGREE"
    FORM_FAILS_BACKTEST = "FORM_FAILS_BACKTEST"
    DUPLICATE_POINTS = "DUPLICATE_POINTS"
    MIXED_CONVENTIONS = "MIXED_CONVENTIONS"
    FLOPS_NOT_6ND = "FLOPS_NOT_6ND"
    DIVERGED_RUNS_EXCLUDED = "DIVERGED_RUNS_EXCLUDED"
    UNFINISHED_RUNS_EXCLUDED = "UNFINISHED_RUNS_EXCLUDED"
    UNFINISHED_SCHEDULE = "UNFINISHED_SCHEDULE"


@dataclass(frozen=True)
class Finding:
    """One finding: a code for programs, what was seen and what to do about it for people, the numbers for both."""

    code: Code
    message: str
    remedy: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """{"code", "message", "remedy", "numbers"}, as in `law.json`."""
        return {"code": str(self.code), "message": self.message, "remedy": self.remedy, "numbers": self.numbers}
