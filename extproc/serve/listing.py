"""`GET /v1/models`, answered for all pools at once."""

import json

from extproc.serve.pools import Pools
from extproc.stream import Reply, Request

PATH = "/v1/models"


def asks_for_models(request: Request) -> bool:
    """Whether the request is for the list of models; the query string is ignored."""
    return request.method == "GET" and request.path.partition("?")[0] == PATH


def list_models(pools: Pools) -> Reply:
    """The models of all pools in OpenAI's form, each with its aliases, as the configuration lists
    them."""
    names = (name for pool in pools.all for model in pool.config.models for name in model.names)
    # OpenAI's clients demand a time; none is known, and replicas have to agree.
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "homing"} for name in names]
    return Reply("models", json.dumps({"object": "list", "data": models}).encode())
