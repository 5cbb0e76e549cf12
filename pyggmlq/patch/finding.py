# SPDX-License-Identifier: MIT
"""What the engine reports: one record per problem, collected and shown together."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """A problem that keeps the engine from writing. ``details`` are (label, text) lines for a human."""

    code: str
    subject: str
    message: str
    details: tuple[tuple[str, str], ...] = field(default=())

    def as_dict(self) -> dict:
        return {
            "code": self.code,
            "subject": self.subject,
            "message": self.message,
            "details": [{"label": label, "text": text} for label, text in self.details],
        }


class PatchError(Exception):
    """One or more findings. Unless a finding says otherwise, nothing was written."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__("\n".join(f"{f.subject}: {f.message}" for f in findings))
        self.findings = findings
