"""``segcft serve``: a page on which an image is pulled by sliders.

``session`` answers, ``drawing`` makes pictures of answers, ``downloads`` files; ``server`` speaks HTTP, ``page.html``,
``page.css`` and ``page.js`` are what a browser shows; ``command`` reads the command line.
"""
