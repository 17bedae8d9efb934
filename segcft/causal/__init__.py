"""The causal model of the variables: graph, mechanisms, interventions."""
