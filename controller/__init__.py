"""crossdock: a package manager for Crossplane clusters."""

__version__ = "0.1.0"
