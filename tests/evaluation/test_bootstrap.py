"""Laws of the bootstrap."""

import numpy as np
import pytest

from segcft.evaluation.bootstrap import Estimate, estimate, largest, mean, means, ratio, resamples


def test_the_first_resample_is_the_data_and_all_have_as_many_rows():
    weights = resamples([np.arange(20)], 100)
    assert weights.shape == (101, 20)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 20).all()
    assert (weights == resamples([np.arange(20)], 100)).all(), "seeded"


def test_intervals_cover_the_mean_as_often_as_they_say():
    """Twice the standard error of the share is 3 points, and the percentile bootstrap is a little narrow."""
    drawn = np.random.default_rng(0).exponential(size=(200, 60))
    weights = resamples([np.arange(60)], 1000)
    found = [estimate(means({"x": row}, weights)["x"]) for row in drawn]
    covered = np.mean([one.low <= 1 <= one.high for one in found])
    assert 0.88 <= covered <= 0.98
    assert np.mean([one.high - one.low for one in found]) == pytest.approx(2 * 1.96 / 60**0.5, rel=0.1)


def test_a_paired_difference_is_sharper_than_its_parts():
    random = np.random.default_rng(1)
    subject = random.normal(size=50)
    columns = {"a": subject + 0.1, "b": subject + 0.01 * random.normal(size=50)}
    found = means(columns, resamples([np.arange(50)]))
    apart, together = estimate(found["a"]), estimate(found["a"] - found["b"])
    assert together.low > 0.09
    assert apart.high - apart.low > 10 * (together.high - together.low)


def test_the_order_of_subjects_does_not_matter():
    random = np.random.default_rng(2)
    values, subjects, order = random.normal(size=30), np.arange(30), random.permutation(30)
    one = means({"x": values}, resamples([subjects]))["x"]
    other = means({"x": values[order]}, resamples([subjects[order]]))["x"]
    np.testing.assert_allclose(one, other)


def test_seeds_and_subjects_are_resampled_crosswise():
    seeds, subjects = np.repeat([0, 1, 2], 10), np.tile(np.arange(10), 3)
    weights = resamples([seeds, subjects], 50)
    table = weights.reshape(51, 3, 10)
    assert (weights.sum(1) == 30).all()
    for drawn in table:
        assert np.linalg.matrix_rank(drawn) == 1, "a subject counts alike in every seed"
    by_seed = means({"x": seeds.astype(float)}, weights)["x"]
    assert estimate(by_seed).low < 0.5 < 1.5 < estimate(by_seed).high


def test_unknown_values_do_not_count():
    found = means({"x": [1.0, np.nan, 3.0], "y": [np.nan] * 3}, np.ones((1, 3)))
    assert found["x"][0] == 2
    assert np.isnan(found["y"][0])
    assert all(np.isnan(estimate(found["y"])))


def test_metrics_of_means():
    columns = {"a": [2.0, 3.0], "b": [4.0, 0.0], "c_1": [1.0, 1.0], "c_2": [-2, 0.5]}
    found = {name: np.array(values) for name, values in columns.items()}
    assert mean("a")(found).tolist() == [2, 3]
    assert ratio("a", "b")(found)[0] == 0.5
    assert np.isnan(ratio("a", "b")(found)[1])
    assert largest("c_")(found).tolist() == [-2, 1]
    assert largest("d_")(found).tolist() == [0, 0]
    assert np.isnan(mean("d")(found)).all()
    assert estimate(np.array([1.0, 0.0, 2.0]))[0] == Estimate(1, 0, 2).value
