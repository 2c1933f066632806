"""The room whose peer is the Kubernetes API server."""
