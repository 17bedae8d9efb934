"""``segcft serve``: a page on which an image is pulled by sliders.

``desk`` answers questions about ``subjects``, ``drawing`` makes pictures of answers, ``downloads`` files. ``server``
speaks HTTP: ``asked`` checks what comes, ``shown`` says what goes, ``sessions`` keeps who is here, ``security`` who
may be. ``page.html``, ``page.css`` and ``page.js`` are what a browser shows; ``command`` reads the command line.
"""
