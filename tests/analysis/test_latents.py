"""Principal components and clusters of latents, against scikit-learn and by their definitions."""

from __future__ import annotations

import analysis_toys as toys
import numpy as np
import pytest
from sklearn.decomposition import PCA

from cryobench.analysis.latents import chosen_clusters, clusters_of, principal_components, umap_of
from cryobench.errors import DependencyError, ParameterError


def test_principal_components_are_those_of_scikit_learn():
    z = (
        np.random.default_rng(0).normal(size=(200, 4))
        @ np.diag([3.0, 2, 1, 0.2])
        @ np.random.default_rng(1).normal(size=(4, 4))
    )
    ours, other = principal_components(z), PCA(4).fit(z)
    np.testing.assert_allclose(ours.variance, other.explained_variance_ratio_, rtol=1e-9)
    signs = np.sign((ours.axes * other.components_).sum(axis=1))
    np.testing.assert_allclose(ours.axes, signs[:, None] * other.components_, atol=1e-9)
    np.testing.assert_allclose(ours.coordinates, other.transform(z) * signs, atol=1e-9)
    assert (np.take_along_axis(ours.axes, np.abs(ours.axes).argmax(axis=1)[:, None], axis=1) > 0).all()


def test_a_traversal_runs_from_the_5th_to_the_95th_percentile():
    z = np.random.default_rng(0).normal(size=(500, 3)) * [5, 1, 0.1]
    principal = principal_components(z)
    along, latents = principal.traversal(1, 7)
    np.testing.assert_allclose(along[[0, -1]], np.percentile(principal.coordinates[:, 1], [5, 95]))
    np.testing.assert_allclose(np.diff(along), np.diff(along)[0])
    coordinates = (latents - z.mean(axis=0)) @ principal.axes.T
    np.testing.assert_allclose(coordinates[:, 1], along)
    np.testing.assert_allclose(coordinates[:, [0, 2]], 0, atol=1e-12)


def test_latents_that_do_not_vary_have_no_variance():
    assert principal_components(np.ones((5, 2))).variance.tolist() == [0, 0]


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_clusters_are_numbered_by_size_and_their_states_are_particles(method):
    z = toys.latents(60)
    clusters = clusters_of(z, 3, method, seed=4)
    assert clusters.sizes.tolist() == [30, 20, 10]
    np.testing.assert_allclose(clusters.centres, [[-2, 0], [2, 0], [2, 2]], atol=0.1)
    for number, (centre, particle) in enumerate(zip(clusters.centres, clusters.nearest, strict=True), 1):
        assert clusters.labels[particle] == number
        distances = ((z - centre) ** 2).sum(axis=1)
        assert distances[particle] == distances[clusters.labels == number].min()
    again = clusters_of(z, 3, method, seed=4)
    np.testing.assert_array_equal(clusters.labels, again.labels)


def test_the_sum_of_squares_is_that_of_the_clusters():
    z = toys.latents(60)
    clusters = clusters_of(z, 4)
    assert clusters.score == pytest.approx(((z - clusters.centres[clusters.labels - 1]) ** 2).sum())


def test_components_of_a_mixture_without_particles_are_left_out():
    z = np.concatenate([np.full((50, 1), 0.0), np.full((50, 1), 1.0), [[0.5]]])
    clusters = clusters_of(z, 3, "gmm")
    assert len(clusters) + clusters.empty == 3
    assert clusters.sizes.sum() == 101
    assert (clusters.sizes > 0).all()


@pytest.mark.parametrize(
    ("z", "k", "method", "message"),
    [
        (np.zeros((5, 2)), 0, "kmeans", "--k must be at least 1, got 0"),
        (np.arange(5.0)[:, None], 6, "kmeans", "--k 6: there are 5 particles; give at most 5 clusters"),
        (np.zeros((5, 2)), 2, "gmm", "--k 2: there are 1 different latents"),
        (np.zeros((1, 2)), 1, "gmm", "--method gmm needs at least 2 particles, got 1; give --method kmeans"),
        (np.zeros((5, 2)), 1, "dbscan", "--method: expected kmeans or gmm, got 'dbscan'"),
    ],
)
def test_impossible_clusters_are_refused(z, k, method, message):
    with pytest.raises(ParameterError, match=message):
        clusters_of(z, k, method)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "--drop: expected numbers of clusters such as 2,5, got 'a'"),
        ("1,,2", "expected numbers of clusters"),
        ("0", "--drop: there is no cluster 0; clusters are numbered from 1 to 3"),
        ("2,4", "there is no cluster 4"),
    ],
)
def test_wrong_lists_of_clusters_are_refused(text, message):
    with pytest.raises(ParameterError, match=message):
        chosen_clusters(text, 3, "--drop")


def test_umap_needs_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(
        DependencyError, match=r"--umap needs umap-learn; install it with `pip install cryobench\[umap\]`"
    ):
        umap_of(toys.latents(60))
