"""The API server of Kubernetes: settings from the URL, a kubeconfig or the pod; EndpointSlices listed and watched.

lightkube finds the cluster and logs in (certificates, tokens that are renewed, commands of a kubeconfig); requests are
our own, because its watch knows neither bookmarks nor an end of waiting. Everything is imported when it is used.
"""

from groundplane.backends.kubernetes.address import KubernetesAddress, parse_url

__all__ = ["KubernetesAddress", "parse_url"]
