"""A pool's load as its replicas tell each other: the ledger, with this process's clock."""

from collections.abc import Callable, Mapping
from time import monotonic

from extproc.routing import Load, LoadLedger
from extproc.terms import InstanceId


class SharedLoad:
    """A log's `LoadParty`. rate: tokens a second that an instance prefills, as of now."""

    def __init__(self, ledger: LoadLedger, rate: Callable[[], float]) -> None:
        self._ledger = ledger
        self._rate = rate

    @property
    def changes(self) -> int:
        """Own requests that began or ended."""
        return self._ledger.changes

    def own(self) -> Mapping[InstanceId, tuple[float, int]]:
        """What this replica has in flight."""
        return self._ledger.own(monotonic(), self._rate())

    def report(self, replica: str, loads: Mapping[InstanceId, tuple[float, int]] | None) -> None:
        """What another one has, or that it is gone."""
        if loads is None:
            self._ledger.forget(replica)
        else:
            told = {name: Load(*load) for name, load in loads.items()}
            self._ledger.report(replica, told, monotonic(), self._rate())

    def heard(self) -> None:
        """What did not change still holds."""
        self._ledger.heard(monotonic())
