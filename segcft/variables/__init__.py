"""The variables of the causal graph: names, units, measurements on masks, requests."""
