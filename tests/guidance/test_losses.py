"""Prices of what a flow does."""

import torch

from segcft.guidance.losses import displacement_elsewhere


def test_displacement_costs_the_more_the_further_from_what_was_asked_and_nothing_at_it():
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[0, 28:36, 28:36] = True
    costs = []
    for column in (32, 44, 52, 62):
        displacement = torch.zeros(2, 2, 64, 64)
        displacement[:, 0, 30:34, column] = 2.0
        costs.append(float(displacement_elsewhere(displacement, mask)))
    assert costs[0] == 0
    assert costs == sorted(costs)
    assert costs[-1] > 1.5 * costs[1] > 0
    assert float(displacement_elsewhere(torch.ones(2, 2, 64, 64), torch.zeros_like(mask))) == 0, "nothing was asked"
