"""From results folders to pages and figures that a stranger can read.

Flow: folder -> ``load_results.Run`` -> ``findings`` (who is best, by how much, may one trust it) -> page or Markdown.
"""
