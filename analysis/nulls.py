"""What the spectral edge looks like when there is none: null distributions of every statistic of a window of updates.

An edge statistic sees updates d_t only through their dot products. For Gaussian updates whose covariance over time is C
(W x W) and whose P coordinates are independent, the Gram matrix is Wishart: G = A W A^T with A A^T = C and W = L L^T by
Bartlett's decomposition (chi-distributed diagonal, normal lower triangle). So a null costs W^2 random numbers, not W x
P, and is exact in law, for every P >= W (tested against simulation of the updates themselves). Updates of given norms
with uniformly random directions are Gaussian ones divided by their norms: the same Wishart matrix, rescaled to the
diagonal that is wanted; also exact.

Sketched updates meet as in fewer dimensions than they have parameters, since the sketch adds noise to every dot
product: for them P is the effective dimension (:func:`synthlm.analysis.spectral_edge.effective_dimensions`), which need
not be whole. The law is then matched in its second moments alone (false positives tested).

The nulls, from science to code: ``random_directions`` (same step norms, no direction means anything); ``stationary``
(same norms, and directions correlated over time as measured, by lag: the AR/Toeplitz null); the norm-normalized control
is a transformation of the data, ``edge_statistics.normalized``. Shuffling time inside a window is no null: it leaves
the spectrum as it is. All choices here are ours; the paper tests against no null of these.

Windows that hold an update of norm zero or that is not finite have no null: Gram matrices, statistics and p are NaN.

Axis names: ``sample`` of a null, ``record``, ``lag``, ``window``, W updates in a window, P parameters.
"""

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from synthlm.analysis.edge_statistics import eigensystem, grams, normalized, sound, spectrum_statistics

Array = NDArray[np.float64]


def wishart(rng: np.random.Generator, size: int, dimension: float, shape: tuple[int, ...] = ()) -> Array:
    """``[*shape, size, size]`` Gram matrices of ``size`` independent standard normal vectors in ``dimension`` axes.

    Bartlett's decomposition (Bartlett 1933).

    Raises:
        ValueError: when ``dimension`` is below ``size``.
    """
    if dimension < size:
        raise ValueError(
            f"{size} vectors in {dimension} dimensions: Bartlett's decomposition needs as many at least"
        )
    lower = np.tril(rng.standard_normal((*shape, size, size)), -1)
    diagonal = np.sqrt(rng.chisquare(dimension - np.arange(size), size=(*shape, size)))
    lower[..., np.arange(size), np.arange(size)] = diagonal
    return lower @ np.swapaxes(lower, -1, -2)


def with_norms(gram: Array, norms: ArrayLike) -> Array:
    """Gram matrices of the same vectors, scaled to the given norms ``[..., W]``."""
    scale = np.asarray(norms, dtype=float) / np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    return gram * scale[..., :, None] * scale[..., None, :]


def random_directions(rng: np.random.Generator, norms: ArrayLike, dimension: float, samples: int) -> Array:
    """``[sample, ..., W, W]``: Gram matrices of updates of norms ``[..., W]`` in uniformly random directions."""
    norms = np.asarray(norms, dtype=float)
    size = norms.shape[-1]
    return with_norms(wishart(rng, size, dimension, (samples, *norms.shape[:-1])), norms)


def stationary(
    rng: np.random.Generator,
    norms: ArrayLike,
    correlation: ArrayLike,
    dimension: float,
    samples: int,
    floor: ArrayLike = 0.0,
) -> Array:
    """``[sample, ..., W, W]``: Gram matrices of updates of norms ``[..., W]`` whose directions are correlated over
    time.

    Gaussian updates with the Toeplitz covariance of ``correlation``, each scaled to its norm.

    Args:
        correlation: ``[..., W]``, of updates 0, 1, ... records apart; lags that cannot be those of any process are
            repaired (:func:`toeplitz`).
        floor: ``[...]``, smallest eigenvalue of that covariance.
    """
    norms = np.asarray(norms, dtype=float)
    root = _root(toeplitz(correlation, floor))
    gram = wishart(rng, norms.shape[-1], dimension, (samples, *norms.shape[:-1]))
    return with_norms(root @ gram @ np.swapaxes(root, -1, -2), norms)


def toeplitz(correlation: ArrayLike, floor: ArrayLike = 0.0) -> Array:
    """``[..., W] -> [..., W, W]``: the Toeplitz matrix of a correlation by lag, its eigenvalues at ``floor`` or above.

    Measured correlations need not be those of a process: eigenvalues below the floor are set to it, and the diagonal is
    scaled back to 1 (a change the size of what was lifted). A floor of zero leaves such matrices singular: windows
    drawn from them have endless ratios at the end of their spectrum.
    """
    correlation = np.asarray(correlation, dtype=float)
    place = np.arange(correlation.shape[-1])
    matrix = correlation[..., np.abs(place[:, None] - place)]
    values, vectors = np.linalg.eigh(matrix)
    lifted = np.maximum(values, np.asarray(floor, dtype=float)[..., None])
    clipped = (vectors * lifted[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return with_norms(clipped, np.ones_like(correlation))


def _root(matrix: Array) -> Array:
    """A with A A^T = matrix, for positive semidefinite matrices."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]


def lag_correlation(rows: ArrayLike) -> Array:
    """Rows ``[..., record, lag]`` -> ``[..., window, W]``: mean cosine of a window's updates, by their distance in
    records.

    The measured correlation for :func:`stationary`, of each window by itself.
    """
    gram = grams(normalized(rows))
    size = gram.shape[-1]
    return np.stack([np.diagonal(gram, lag, -2, -1).mean(-1) for lag in range(size)], -1)


def first_order(rho: float, window: int) -> Array:
    """``[W]`` correlation by lag of a first-order autoregressive process: rho^lag.

    Raises:
        ValueError: when ``rho`` is not in (-1, 1).
    """
    if not -1 < rho < 1:
        raise ValueError(f"rho: {rho} must lie between -1 and 1")
    return np.float64(rho) ** np.arange(window, dtype=np.float64)


def window_nulls(
    rows: ArrayLike, dimension: float, samples: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Gram matrices ``[sample, ..., window, W, W]`` under each null, for every window of a trajectory.

    Args:
        rows: ``[..., record, lag]``; windows that hold an update of norm zero or that is not finite give NaN.
        dimension: P, effective where the updates are sketched.

    Returns:
        ``directions``: same step norms, random directions. ``stationary``: same norms and each window's lag
        correlation, with no less noise than the window itself has (the smallest eigenvalue of its cosines).
    """
    gram = grams(rows)
    norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    correlation = lag_correlation(rows)
    whole = sound(gram)
    held = np.where(whole[..., None], norms, 1.0)
    flat = np.where(whole[..., None], correlation, first_order(0.0, norms.shape[-1]))
    least = np.linalg.eigvalsh(np.where(whole[..., None, None], grams(normalized(rows)), 0.0))[..., 0]
    void = np.where(whole, 1.0, np.nan)[..., None, None]
    return {
        "directions": random_directions(rng, held, dimension, samples) * void,
        "stationary": stationary(rng, held, flat, dimension, samples, np.maximum(least, 0.0)) * void,
    }


def null_statistics(gram: Array, dimension: float) -> dict[str, NDArray]:
    """Statistics of one window each (:func:`edge_statistics.spectrum_statistics`) of Gram matrices ``[..., W, W]``."""
    return spectrum_statistics(eigensystem(gram)[0], dimension)


def edge_p_values(rows: ArrayLike, dimension: float, samples: int, rng: np.random.Generator) -> Array:
    """``[..., window]`` p of the largest ratio sigma_j / sigma_(j+1) against random directions of the same norms.

    At level a, independent updates are taken for an edge in a share a of windows. The null takes every parameter to
    move alike: where few parameters carry the updates, their directions meet by chance more often, and p is too small.
    NaN for windows without a null.
    """
    gram = grams(rows)
    observed = null_statistics(gram, dimension)["ratio"]
    null = window_nulls(rows, dimension, samples, rng)["directions"]
    return p_values(observed, null_statistics(null, dimension)["ratio"])


def p_values(observed: ArrayLike, null: ArrayLike) -> Array:
    """Monte Carlo p of ``observed`` [...] being as large as it is under ``null`` [sample, ...]: (1 + larger) / (1 +
    samples).

    Never zero, and uniform at most under the null (Phipson & Smyth 2010). NaN where the observation is not finite or
    a sample is NaN: a comparison with nothing would pass for the strongest evidence.
    """
    observed, null = np.asarray(observed, dtype=float), np.asarray(null, dtype=float)
    with np.errstate(invalid="ignore"):
        larger = (null >= observed).sum(0)
    known = np.isfinite(observed) & ~np.isnan(null).any(0)
    return np.where(known, (1 + larger) / (1 + len(null)), np.nan)


def trajectory(
    rng: np.random.Generator, norms: ArrayLike, correlation: ArrayLike, dimension: int, window: int
) -> Array:
    """``[record, lag]``: the rows of one whole null trajectory, for statistics that look at many windows (onsets).

    Args:
        norms: ``[record]`` step norms.
        correlation: ``[lag]`` correlation of directions by lag, continued by :func:`continued`; one entry alone for
            random directions.
        dimension: P, at least the number of records.

    Raises:
        ValueError: when ``dimension`` is below the number of records.
    """
    norms = np.asarray(norms, dtype=float)
    records = len(norms)
    lags = continued(correlation, records)
    gram = wishart(rng, records, dimension)
    if lags[1:].any():
        root = _root(toeplitz(lags))
        gram = root @ gram @ root.T
    gram = with_norms(gram, norms)
    rows = np.full((records, window + 1), np.nan)
    for lag in range(min(window + 1, records)):
        rows[lag:, lag] = np.diagonal(gram, -lag)
    return rows


LEAST_EIGENVALUE = 1e-3
"""Of a correlation that is to be continued."""


def continued(correlation: ArrayLike, records: int) -> Array:
    """``[lag] -> [records]``: a correlation by lag beyond where it was measured, as the autoregressive process of its
    lags has it (Yule-Walker; the continuation of largest entropy, Burg 1975).

    To end it at zero would leave no process: strong correlations would come out weaker at every lag. Measured lags that
    no process has are drawn toward zero, just far enough.
    """
    given = np.array(correlation, dtype=float)[:records]
    order = len(given) - 1
    if not given[1:].any():
        return np.concatenate([given, np.zeros(records - len(given))])
    least = np.linalg.eigvalsh(scipy.linalg.toeplitz(given))[0]
    if least < LEAST_EIGENVALUE:  # eigenvalues of (1 - s) C + s I are (1 - s) c + s
        given[1:] *= (1 - LEAST_EIGENVALUE) / (1 - least)
    weights = scipy.linalg.solve_toeplitz(given[:-1], given[1:])
    lags = np.zeros(records)
    lags[: len(given)] = given
    for lag in range(len(given), records):
        lags[lag] = weights @ lags[lag - order : lag][::-1]
    return lags
