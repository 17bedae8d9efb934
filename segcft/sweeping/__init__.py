"""``segcft sweep``: one configuration, many settings and seeds; ``command`` tells how, the rest is its parts.

``plan`` what is searched; ``book`` what is known, and who works on what; ``trainings`` work; ``table`` what came out.
"""

from segcft.sweeping.command import sweep

__all__ = ["sweep"]
