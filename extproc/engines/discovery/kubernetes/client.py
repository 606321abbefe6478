"""The way to the API server: where it is and who we are, by the official configuration loaders."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp

from extproc.engines.discovery.interface import DiscoveryError

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CONNECT_S = 10


class Client:
    """Sends GETs. namespace: the one that the account or the kubeconfig is for."""

    def __init__(self, api: Any, namespace: str) -> None:
        self._api = api
        self.namespace = namespace

    async def get(
        self, path: str, query: Mapping[str, str], timeout_s: float
    ) -> aiohttp.ClientResponse:
        """The answer, whatever its status, its body not read yet."""
        answer = await self._api.call_api(
            path,
            "GET",
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S),
        )
        assert isinstance(answer, aiohttp.ClientResponse)
        return answer


@asynccontextmanager
async def connect(kubeconfig: Path | None) -> AsyncIterator[Client]:
    """As this pod's account, or as the kubeconfig's current context says.

    Raises DiscoveryError where neither can be used.
    """
    library = await asyncio.to_thread(_load_library)
    settings = library.client.Configuration()
    try:
        if kubeconfig is None:
            library.config.load_incluster_config(client_configuration=settings)
            namespace = await asyncio.to_thread(_OWN_NAMESPACE.read_text)
        else:
            file = str(kubeconfig)
            await library.config.load_kube_config(file, client_configuration=settings)
            _, context = library.config.list_kube_config_contexts(file)
            namespace = context["context"].get("namespace", "default")
    except (library.config.ConfigException, OSError) as error:
        raise DiscoveryError(f"Kubernetes: {error}") from None
    async with library.client.ApiClient(settings) as api:
        yield Client(api, namespace.strip())


def _load_library() -> ModuleType:
    """In a thread: it has a class for everything that Kubernetes knows, and takes a second."""
    import kubernetes_asyncio

    return kubernetes_asyncio
