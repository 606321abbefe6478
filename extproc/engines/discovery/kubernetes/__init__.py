"""Discovery from Kubernetes: the pods of an InferencePool, or those with certain labels."""

from extproc.engines.discovery.kubernetes.discovery import KubernetesDiscovery

__all__ = ["KubernetesDiscovery"]
