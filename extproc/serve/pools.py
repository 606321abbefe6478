"""Which pool a request belongs to: what the operator's metadata or header names, else its model."""

from collections.abc import Sequence

from extproc.errors import Unroutable
from extproc.serve.pool import Pool
from extproc.stream import Request


class Pools:
    """All pools, in the configuration's order; never empty.

    header: request header that names a pool, for gateways that set it and remove a client's own;
        None for none.
    """

    def __init__(self, pools: Sequence[Pool], header: str | None) -> None:
        self.all = tuple(pools)
        self._header = header.lower() if header else None
        self._by_name = {pool.name: pool for pool in pools}
        self.renaming = any(pool.renames for pool in self.all)
        """Whether any request may be forwarded under another model's name."""
        self._by_model = {model: pool for pool in reversed(self.all) for model in pool.model_names}

    def of(self, request: Request, model: str) -> Pool:
        """The pool whose instances serve the model to this request.

        Raises Unroutable where the named pool is not known or does not serve it, or none does.
        """
        name = self._name(request)
        if name is None:
            pool = self._by_model.get(model)
        elif (pool := self._by_name.get(name)) is None:
            raise Unroutable("unknown_pool")
        elif model not in pool.model_names:
            pool = None
        if pool is None:
            raise Unroutable("unknown_model")
        return pool

    def forwarded_name(self, request: Request, model: str) -> str | None:
        """What the request's model is called when it is forwarded; None to leave it."""
        try:
            return self.of(request, model).renames.get(model)
        except Unroutable:
            return None

    def named(self, name: str) -> Pool | None:
        """The pool of this name."""
        return self._by_name.get(name)

    def fallback(self, request: Request, model: str | None) -> Pool:
        """Where a request goes by load: the named pool, else the model's, else the first.

        model: as the body names it; None where that is not known.
        """
        named = self._by_name.get(self._name(request) or "")
        return named or self._by_model.get(model or "", self.all[0])

    def _name(self, request: Request) -> str | None:
        if request.pool is not None:
            return request.pool
        return request.headers.get(self._header) if self._header is not None else None
