"""What `doctor` looked at, and what it found."""

from typing import Literal

from pydantic import Field

from nbtl_search.spec.values import Value


class Check(Value):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warning", "problem"]
    says: str = Field(description="what was found")
    advice: str = Field("", description="what to do, where it is not well")

    @classmethod
    def of(cls, name: str, says: str, *, problem: str = "", warning: str = "") -> "Check":
        """Return a check that is well unless there is advice for a problem or a warning."""
        if problem:
            return cls(name=name, state="problem", says=says, advice=problem)
        return cls(name=name, state="warning" if warning else "ok", says=says, advice=warning)
