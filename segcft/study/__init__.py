"""``segcft study``: the stages of an experiment, what each needs, what is stale; several seeds, variations, one table.

``experiment``: configuration from recipe and experiment; ``plan``: every stage with its own configuration, and what it
waits for; ``schedule`` runs them, two at a time; ``report`` pools seeds; ``command`` reads the command line.
``check`` looks at an experiment and its data beforehand; ``template`` explains the file that ``segcft init`` writes.
"""
