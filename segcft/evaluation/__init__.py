"""Compare trained models on one fixed table of interventions, always beside the unchanged image.

Flow: subjects -> table of do() -> counterfactuals of every method -> an evaluator that guided nothing -> one row a
method, question and subject -> numbers with intervals, tables and a picture.
"""
