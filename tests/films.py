"""A chest film and its masks as arrays, with areas that are known to the pixel."""

import numpy as np

LEFT, RIGHT, SIDE = 14324, 17981, 400  # pixels of 1 mm^2; the left lung is 8.952 % of the image


def draw():
    """Grey levels (400, 400) uint8 as viewers show them, and the masks of the left and the right lung."""
    left, right = _ellipse(285, LEFT), _ellipse(115, RIGHT)
    grain = np.random.default_rng(0).integers(-5, 6, (SIDE, SIDE))
    levels = 180 - 120 * (left | right) + grain
    levels[20:60, 180:220] = 240  # something at the top that is on neither side
    return levels.astype(np.uint8), left, right


def lungs(levels):
    """Dark pixels on the right and on the left of a film as it is shown: the patient's left and right lung."""
    dark = levels < 120
    return int(dark[:, SIDE // 2 :].sum()), int(dark[:, : SIDE // 2].sum())


def _ellipse(centre, pixels):
    y, x = np.indices((SIDE, SIDE)) + 0.5
    distance = ((x - centre) / 1.0) ** 2 + ((y - 200) / 1.8) ** 2
    mask = np.zeros(SIDE * SIDE, bool)
    mask[np.argsort(distance.ravel(), kind="stable")[:pixels]] = True
    return mask.reshape(SIDE, SIDE)
