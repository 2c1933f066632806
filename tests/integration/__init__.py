"""The manager against the real control plane and registry of the lab."""
