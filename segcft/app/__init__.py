"""``segcft serve``: a page on which an image is pulled by sliders.

``service`` opens images (``opened_image``) and answers questions about them; ``rendering`` makes pictures of answers,
``downloads`` files. ``server`` speaks HTTP: ``requests`` checks what comes, ``responses`` says what goes, ``sessions``
keeps the opened images, ``access_control`` the token. ``page.html``, ``page.css`` and ``page.js`` are what a browser
shows; ``command`` reads the command line.
"""
