"""An hour of churn and faults: `make soak`."""
