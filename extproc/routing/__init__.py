"""Which instance a turn goes to: views in, a ranking with reasons out. No I/O, no clock."""

from extproc.routing.admission import RETRY_S, Admission
from extproc.routing.crowds import Crowds, last_of
from extproc.routing.flow_control import Choice, FlowControl, Waiting, must_wait
from extproc.routing.hot import HotPrefixes
from extproc.routing.load import Load, LoadLedger, Ticket, Utilisation
from extproc.routing.outlook import Arrivals, Assigned, Candidate, Outlook
from extproc.routing.plain import LeastTokens, RoundRobin, ranked
from extproc.routing.policy import POLICIES, Policy
from extproc.routing.priced import PricedTTFT
from extproc.routing.rates import Rates, Speed
from extproc.routing.returns import CERTAIN_S, LONGEST_S, Gaps, Returns
from extproc.routing.views import InstanceView, PoolView, Ranking, Score, Turn

__all__ = [
    "CERTAIN_S",
    "LONGEST_S",
    "POLICIES",
    "RETRY_S",
    "Admission",
    "Arrivals",
    "Assigned",
    "Candidate",
    "Choice",
    "Crowds",
    "FlowControl",
    "Gaps",
    "HotPrefixes",
    "InstanceView",
    "LeastTokens",
    "Load",
    "LoadLedger",
    "Outlook",
    "Policy",
    "PoolView",
    "PricedTTFT",
    "Ranking",
    "Rates",
    "Returns",
    "RoundRobin",
    "Score",
    "Speed",
    "Ticket",
    "Turn",
    "Utilisation",
    "Waiting",
    "last_of",
    "must_wait",
    "ranked",
]
