"""The engines behind a pool: who is there (discovery), how they fare (metrics, answers)."""

from extproc.engines.conditions import Condition, Conditions
from extproc.engines.instances import Instance, State
from extproc.engines.members import Members

__all__ = ["Condition", "Conditions", "Instance", "Members", "State"]
