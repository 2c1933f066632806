"""The lab: a real control plane and a real OCI registry on loopback, for demo, tests and bench."""
