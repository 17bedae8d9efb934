"""Curved planar reformation against an analytic vessel: a helix of known radius in an oblique, anisotropic volume."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial import cKDTree

from data_modules.coronary.curved_planar_reformation import Centreline, Frames, longitudinal, straighten

RADIUS, STEP, PIXEL = 1.6, 0.5, 0.125  # mm: of the vessel; between rows, and between pixels, of the reformation
SPACING = (0.4, 0.35, 0.5)  # mm


def helix(turns, count=60, wide=9.0, pitch=28.0):
    t = np.linspace(0, turns, count) * 2 * np.pi
    return np.stack([wide * np.cos(t), wide * np.sin(t), pitch * t / (2 * np.pi)], 1)


def oblique():
    """A rotation with unequal edges and a shifted origin."""
    angle = 0.35
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    lean = np.array([[1, 0, 0], [0, np.cos(0.2), -np.sin(0.2)], [0, np.sin(0.2), np.cos(0.2)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ lean @ np.diag([-1, 1, 1]) @ np.diag(SPACING)
    return affine


@pytest.fixture(scope="module")
def vessel():
    """Volume of HU-like values (blurred by a voxel), labels, affine, centreline."""
    points = helix(0.8)
    affine = oblique()
    dense = Centreline(points).at(np.arange(-4, 70, 0.05))
    index = dense @ np.linalg.inv(affine[:3, :3]).T
    low, high = index.min(0) - 14, index.max(0) + 14
    affine[:3, 3] = affine[:3, :3] @ low
    shape = np.ceil(high - low).astype(int)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    away, _ = cKDTree(dense).query(grid @ affine[:3, :3].T + affine[:3, 3], distance_upper_bound=4)
    away = np.minimum(away, 4).reshape(shape)
    return 400 * np.clip((RADIUS - away) / 0.6 + 0.5, 0, 1), (away < RADIUS).astype(np.uint8), affine, points


@pytest.fixture(scope="module")
def straight(vessel):
    volume, labels, affine, points = vessel
    curve = Centreline(points)
    frames = Frames.along(curve, np.arange(STEP / 2, curve.length, STEP))
    return [
        straighten(v, affine, frames, (41, 41), (PIXEL, PIXEL), as_labels)
        for v, as_labels in ((volume, 0), (labels, 1))
    ]


def test_arc_length_of_a_helix_is_exact_and_points_are_equally_spaced():
    curve = Centreline(helix(1.0))
    assert curve.length == pytest.approx(np.hypot(2 * np.pi * 9, 28), rel=1e-4)
    steps = np.linalg.norm(np.diff(curve.at(np.arange(0, curve.length, 0.5)), axis=0), axis=1)
    assert np.ptp(steps) < 0.002


def test_beyond_its_ends_a_centreline_goes_straight_on():
    curve = Centreline(helix(0.5))
    before, start = curve.at([-5.0, 0.0])
    np.testing.assert_allclose(start - before, 5 * curve.tangents([0.0])[0], atol=1e-9)


def test_frames_are_orthonormal_and_do_not_turn_about_the_vessel():
    curve = Centreline(helix(1.0))
    frames = Frames.along(curve, np.arange(0, curve.length, 0.25))
    axes = np.stack([frames.tangents, frames.normals, frames.binormals], 1)
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (len(axes), 3, 3)), atol=1e-9)
    turn = np.sum(np.diff(frames.normals, axis=0) * (frames.binormals[1:] + frames.binormals[:-1]) / 2, 1)
    assert np.abs(turn).sum() < np.radians(0.1), "no spin about the tangent"
    # of a helix, the Frenet frame turns against a rotation-minimising one by torsion times length
    torsion = (28 / (2 * np.pi)) / (81 + (28 / (2 * np.pi)) ** 2)
    principal = -frames.points * [1, 1, 0] / 9
    angles = [np.arctan2(p @ b, p @ n) for p, n, b in zip(principal, frames.normals, frames.binormals, strict=True)]
    turned = np.unwrap(angles)[-1] - angles[0]
    assert abs(turned) == pytest.approx(torsion * curve.length, rel=0.01)


def test_the_vessel_is_straight_and_of_its_radius(straight):
    volume, labels = straight
    half = volume > 200  # (L, 41, 41)
    offset = (np.arange(41) - 20) * PIXEL
    for axis in (1, 2):
        profile = half.sum(axis=3 - axis)
        centre = (profile * offset).sum(1) / profile.sum(1)
        assert np.abs(centre).max() < min(SPACING) / 2
    radius = np.sqrt(half.sum((1, 2)) * PIXEL**2 / np.pi)
    assert np.abs(radius - RADIUS).max() < min(SPACING) / 2
    areas = half.sum((1, 2)) * PIXEL**2 / (np.pi * RADIUS**2)
    assert np.abs(areas - 1).max() < 0.03
    assert labels.sum() * PIXEL**2 == pytest.approx(np.pi * RADIUS**2 * len(labels), rel=0.02)


@pytest.mark.parametrize("angle", [0.0, 37.0, 90.0, 180.0])
def test_a_longitudinal_section_shows_the_diameter(vessel, angle):
    volume, labels, affine, points = vessel
    curve = Centreline(points)
    frames = Frames.along(curve, np.arange(STEP / 2, curve.length, STEP))
    section = longitudinal(volume, affine, frames, angle, 49, PIXEL)
    assert section.shape == (len(frames.points), 49)
    assert np.mean((section > 200).sum(1)) * PIXEL == pytest.approx(2 * RADIUS, rel=0.03)
    assert set(np.unique(longitudinal(labels, affine, frames, angle, 49, PIXEL, labels=True))) == {0, 1}


def test_a_section_at_a_half_turn_is_the_mirror_image(vessel):
    volume, _, affine, points = vessel
    curve = Centreline(points)
    frames = Frames.along(curve, np.arange(1, curve.length, 1))
    front, back = (longitudinal(volume, affine, frames, angle, 21, 0.5) for angle in (0, 180))
    np.testing.assert_allclose(front, back[:, ::-1], atol=1e-2)


def test_smoothing_takes_the_staircase_off_a_skeleton():
    smooth = helix(0.8, count=120)
    stairs = np.round(smooth / 0.5) * 0.5
    rough, soft = Centreline(stairs), Centreline(stairs, smoothing=0.3)
    true = Centreline(smooth).length
    assert abs(soft.length - true) < 0.02 * true < abs(rough.length - true)


def test_bad_centrelines_are_refused(vessel, caplog):
    volume, _, affine, points = vessel
    with pytest.raises(ValueError, match=r"first point 3: \[nan"):
        Centreline(np.where(np.arange(10)[:, None] == 3, np.nan, points[:10]))
    with pytest.raises(ValueError, match="4 different points, got 2 and 8 repeated"):
        Centreline(np.repeat(points[:2], 5, axis=0))
    with pytest.raises(ValueError, match=r"\(5, 2\)"):
        Centreline(points[:5, :2])
    with pytest.raises(ValueError, match=r"-1 mm"):
        Centreline(points, smoothing=-1)
    with caplog.at_level(logging.WARNING):
        assert Centreline(np.repeat(points, 2, axis=0)).length == pytest.approx(Centreline(points).length)
    assert "60 of 120 points" in caplog.text
    frames = Frames.along(Centreline(points + np.array([0, 0, 20])), np.arange(0, 50, 1.0))
    with pytest.raises(ValueError, match=r"leaves the volume: \d+ of 50 points lie outside, first point \d+ at \("):
        straighten(volume, affine, frames, (5, 5), (1, 1))
    with pytest.raises(ValueError, match="no inverse"):
        straighten(volume, np.zeros((4, 4)), frames, (5, 5), (1, 1))


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(0, 12), st.just(3)), elements=st.floats(-50, 50) | st.just(np.nan)))
def test_any_points_give_a_curve_or_a_clear_refusal(points):
    different = 1 + (np.linalg.norm(np.diff(points, axis=0), axis=1) > 1e-6).sum()
    if not np.isfinite(points).all() or len(points) == 0 or different < 4:
        with pytest.raises(ValueError, match="point"):
            Centreline(points)
        return
    curve = Centreline(points)
    frames = Frames.along(curve, np.linspace(0, curve.length, 7))
    assert np.isfinite(frames.binormals).all()
    np.testing.assert_allclose(np.linalg.norm(frames.normals, axis=1), 1, atol=1e-6)
