"""``segcft sweep``: one configuration, many settings and seeds; ``command`` tells how, the rest is its parts.

``search_space``: what is searched; ``storage``: trials, results and their locks; ``workers`` train; ``table``: results.
"""
