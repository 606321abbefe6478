"""Which instance a turn goes to: views in, a ranking with reasons out. No I/O, no clock."""

from extproc.routing.load import Load, LoadLedger, Ticket, Utilisation
from extproc.routing.policy import POLICIES, Policy
from extproc.routing.priced import PricedTTFT
from extproc.routing.views import InstanceView, PoolView, Ranking, Score, Turn

__all__ = [
    "POLICIES",
    "InstanceView",
    "Load",
    "LoadLedger",
    "Policy",
    "PoolView",
    "PricedTTFT",
    "Ranking",
    "Score",
    "Ticket",
    "Turn",
    "Utilisation",
]
