"""The room that speaks to nobody: values and rules, without waiting, input or output."""
