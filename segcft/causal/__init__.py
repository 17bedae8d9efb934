"""The structural causal model (SCM) of the variables: graph, mechanisms and interventions."""
