"""What the dot products of updates say: spectrum, gap position, gaps, rotation, stability, adiabatic parameter.

Let d_t be the updates and X the last W of them (W x P). G = X X^T has eigenvalues lambda_1 >= ... >= lambda_W, and
sigma_j = sqrt(lambda_j) are the singular values of X. Source of the definitions: arXiv 2603.28964 and the author's
code; what is ours is marked so.

Axis names: ``record`` updates, ``lag`` 0..W, ``window`` the windows that end at records W-1, W, ...; ``...`` any
leading axes (runs, parameter sets, samples of a null).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FLOOR = 1e-7
"""Singular values below this share of the largest are rounding (a Gram matrix squares them) and are held at it in
ratios."""

MODES = 3
"""Leading modes whose stability and rotation are followed."""

Array = NDArray[np.float64]
Statistics = dict[str, NDArray[Any]]


def normalized(rows: ArrayLike) -> Array:
    """The rows ``[..., record, lag]`` of the same updates, each divided by its own norm.

    A control (ours): what is left of an effect when step sizes say nothing. Updates of norm zero give NaN.
    """
    rows = np.asarray(rows, dtype=float)
    norms = np.sqrt(rows[..., 0])
    earlier = np.full(rows.shape, np.nan)
    for lag in range(rows.shape[-1]):
        earlier[..., lag:, lag] = norms[..., : norms.shape[-1] - lag]
    with np.errstate(invalid="ignore", divide="ignore"):
        return rows / (norms[..., None] * earlier)


def grams(rows: ArrayLike) -> Array:
    """Rows ``[..., record, lag]`` -> ``[..., window, W, W]``, oldest update first.

    Raises:
        ValueError: with fewer than W records.
    """
    rows = np.asarray(rows, dtype=float)
    window = _window(rows)
    later, lag = _pairs(np.arange(window), np.arange(window))
    first = np.arange(rows.shape[-2] - window + 1)
    return rows[..., first[:, None, None] + later, lag]


def crossings(rows: ArrayLike) -> Array:
    """``[..., window - 1, W, W]``: dot products of each window's updates (columns) with those of the window one record
    before it (rows)."""
    rows = np.asarray(rows, dtype=float)
    window = _window(rows)
    later, lag = _pairs(np.arange(window), 1 + np.arange(window))
    first = np.arange(rows.shape[-2] - window)
    return rows[..., first[:, None, None] + later, lag]


def _window(rows: Array) -> int:
    window = rows.shape[-1] - 1
    if rows.shape[-2] < window:
        raise ValueError(f"{rows.shape[-2]} updates do not fill a window of {window}")
    return window


def _pairs(i: NDArray, j: NDArray) -> tuple[NDArray, NDArray]:
    """Place of the later update and the lag for every pair of places."""
    return np.maximum(i[:, None], j), np.abs(i[:, None] - j)


def eigensystem(gram: ArrayLike) -> tuple[Array, Array]:
    """Singular values ``[..., W]``, largest first, and eigenvectors ``[..., W, mode]`` of Gram matrices ``[..., W,
    W]``.

    Windows that are not ``sound`` give NaN: an update of norm zero has no direction, and its singular value of zero is
    no gap.
    """
    gram = np.asarray(gram, dtype=float)
    whole = sound(gram)
    values, vectors = np.linalg.eigh(np.where(whole[..., None, None], gram, 0.0))
    sigma = np.sqrt(np.maximum(values[..., ::-1], 0.0))
    return (
        np.where(whole[..., None], sigma, np.nan),
        np.where(whole[..., None, None], vectors[..., ::-1], np.nan),
    )


def sound(gram: ArrayLike) -> NDArray[np.bool_]:
    """``[..., W, W] -> [...]``: whether a window's dot products are finite and each of its updates has a length."""
    gram = np.asarray(gram, dtype=float)
    return np.isfinite(gram).all(axis=(-2, -1)) & (np.diagonal(gram, axis1=-2, axis2=-1) > 0).all(-1)


def ratios(sigma: Array) -> Array:
    """sigma_j / sigma_(j+1), ``[..., W] -> [..., W-1]``; values under ``FLOOR`` of the largest are held at it."""
    held = np.maximum(sigma, FLOOR * sigma[..., :1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return held[..., :-1] / held[..., 1:]


def gap_positions(sigma: Array, dimension: float) -> dict[str, NDArray[np.int64]]:
    """The gap position k* by the three rules in use, from 1; 0 where there is none, as where ``sigma`` is NaN.

    ``k_ratio``: argmax sigma_j / sigma_(j+1). ``k_mass``: the ratio weighted by sigma_j / sum sigma. ``k_bulk``: the
    ratio, among eigenvalues above the upper Marchenko-Pastur edge nu^2 (sqrt P + sqrt W)^2, with nu^2 P the mean of the
    lower half of the eigenvalues, as in the author's code. Half of the spectrum is then nearly always above it.

    Args:
        dimension: P, number of parameters; of sketched updates their effective dimension
            (:func:`synthlm.analysis.spectral_edge.effective_dimensions`).
    """
    ratio = ratios(sigma)
    with np.errstate(invalid="ignore", divide="ignore"):
        mass = ratio * sigma[..., :-1] / sigma.sum(-1, keepdims=True)
    squared = sigma**2
    window = sigma.shape[-1]
    edge = squared[..., window // 2 :].mean(-1, keepdims=True) * (1 + np.sqrt(window / dimension)) ** 2
    above = np.where(squared[..., :-1] > edge, ratio, -np.inf)
    return {
        "k_ratio": _argmax(ratio),
        "k_mass": _argmax(mass),
        "k_bulk": _argmax(above),
    }


def _argmax(score: Array) -> NDArray[np.int64]:
    """Place of the largest finite score from 1; 0 where none is finite."""
    clean = np.where(np.isnan(score), -np.inf, score)
    return np.where(np.isfinite(clean.max(-1)), clean.argmax(-1) + 1, 0)


def spectrum_statistics(sigma: Array, dimension: float) -> Statistics:
    """What one window's singular values ``[..., W]`` say: arrays of ``[...]``, of ``[..., W]`` for ``sigma``.

    k* by three rules (see :func:`gap_positions`); at the plain rule's k*: ``ratio`` R, ``gap`` g = sigma_k -
    sigma_(k+1), ``gap_lambda`` lambda_k - lambda_(k+1). ``ratio_12``, ``ratio_23``; ``g23`` = sigma_2^2 - sigma_3^2;
    ``g23_share`` = g23 / sum lambda (ours: free of step size). ``share`` = lambda_1 / sum lambda.
    """
    ratio = ratios(sigma)
    found: Statistics = {"sigma": sigma, **gap_positions(sigma, dimension)}
    k = np.maximum(found["k_ratio"], 1)

    def at(values: Array, place: NDArray) -> Array:
        return np.take_along_axis(values, place[..., None], -1)[..., 0]

    squared = sigma**2
    total = squared.sum(-1)
    g23 = squared[..., 1] - squared[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return found | {
            "ratio": at(ratio, k - 1),
            "gap": at(sigma, k - 1) - at(sigma, k),
            "gap_lambda": at(squared, k - 1) - at(squared, k),
            "ratio_12": ratio[..., 0],
            "ratio_23": ratio[..., 1],
            "g23": g23,
            "g23_share": g23 / total,
            "share": squared[..., 0] / total,
        }


def edge_statistics(rows: ArrayLike, dimension: float, lr: ArrayLike = np.nan) -> Statistics:
    """Every statistic of every window of a trajectory.

    Beyond :func:`spectrum_statistics`, all ``[..., window]``:

    - ``norm`` of the newest update; ``drift`` |w_t - w_(t-W)| / W; ``lag_1``: mean correlation of neighbouring updates;
    - ``change``: ||dC||_F of C = X^T X (P x P) against the window one record before, by
      ||dC||^2 = ||d_new||^4 + ||d_old||^4 - 2 (d_new . d_old)^2; ``gram_change``: ||G_t - G_(t-1)||_F;
    - ``adiabatic_sigma`` = change / (lr g^2) with the gap of singular values, ``adiabatic_lambda`` with that of
      eigenvalues (the paper's letter g stands for both; the second carries units of 1 / update^2). ``turning`` =
      change / gap_lambda (ours): the Davis-Kahan bound of the turn of the leading subspace, without units;
    - ``stability_1..3`` = max(0, 1 - change^2 / gap_j^2), gap_j the distance of eigenvalue j to its nearest neighbour;
    - ``rotation_1..3`` (degrees): largest principal angle, in parameter space, between the spans of the leading 1..3
      right singular vectors of X and of the window one record before.

    The first window has no window before it: what compares two windows is NaN there. Windows that hold an update of
    norm zero (a checkpoint kept twice) or that is not finite have no spectrum: k* is 0, and the rest NaN but for what
    needs none (``norm``, ``drift``, ``change``, ``gram_change``).

    Args:
        rows: ``[..., record, lag]`` from an ``UpdateStream``.
        dimension: number of parameters; of a sketch its ``effective`` dimension.
        lr: learning rate at each record ``[record]``, or one number.

    Raises:
        ValueError: with fewer than W records.
    """
    rows = np.asarray(rows, dtype=float)
    gram = grams(rows)
    window = gram.shape[-1]
    sigma, vectors = eigensystem(gram)
    out = spectrum_statistics(sigma, dimension)
    norm = np.sqrt(rows[..., window - 1 :, 0])
    out["norm"] = norm
    out["drift"] = np.sqrt(np.maximum(gram.sum((-2, -1)), 0.0)) / window
    neighbours = grams(normalized(rows))[..., np.arange(window - 1), np.arange(1, window)]
    out["lag_1"] = neighbours.mean(-1)

    before = np.s_[..., :-1, :]
    newest, oldest = rows[..., window:, 0], rows[..., : rows.shape[-2] - window, 0]
    meet = rows[..., window:, window]
    out["change"] = _later(np.sqrt(np.maximum(newest**2 + oldest**2 - 2 * meet**2, 0.0)))
    out["gram_change"] = _later(np.sqrt(((gram[..., 1:, :, :] - gram[..., :-1, :, :]) ** 2).sum((-2, -1))))
    rate = np.broadcast_to(np.asarray(lr, dtype=float), rows.shape[-2:-1])[window - 1 :]
    with np.errstate(invalid="ignore", divide="ignore"):
        for kind, gap in (("sigma", out["gap"]), ("lambda", out["gap_lambda"])):
            out[f"adiabatic_{kind}"] = out["change"] / (rate * gap**2)
        out["turning"] = out["change"] / out["gap_lambda"]
        squared = sigma**2
        step = squared[..., :-1] - squared[..., 1:]
        least = np.minimum(
            np.concatenate([np.full_like(step[..., :1], np.inf), step], -1),
            np.concatenate([step, np.full_like(step[..., :1], np.inf)], -1),
        )
        for j in range(MODES):
            out[f"stability_{j + 1}"] = np.maximum(0.0, 1 - out["change"] ** 2 / least[..., j] ** 2)

        # <v_i of the window before, v_j of this one> = u_i^T (X_before X^T) u_j / (sigma_i sigma_j)
        turned = np.swapaxes(vectors[..., :-1, :, :], -1, -2) @ crossings(rows) @ vectors[..., 1:, :, :]
        floor = np.maximum(sigma, FLOOR * sigma[..., :1])
        cosines = turned / (floor[before][..., None] * floor[..., 1:, :][..., None, :])
    for j in range(MODES):
        out[f"rotation_{j + 1}"] = _later(_largest_angle(cosines[..., : j + 1, : j + 1]))
    return out


def _later(values: Array) -> Array:
    """Prepend NaN: values that compare a window with the one before it, on the axis of all windows."""
    return (
        np.concatenate([np.full_like(values[..., :1], np.nan), values], -1)
        if values.shape[-1]
        else (np.full((*values.shape[:-1], 1), np.nan))
    )


def _largest_angle(cosines: Array) -> Array:
    """Degrees of the largest principal angle, from ``[..., k, k]`` inner products of two orthonormal bases."""
    finite: Any = np.isfinite(cosines).all((-2, -1))
    least = np.linalg.svd(np.where(finite[..., None, None], cosines, 0.0), compute_uv=False)[..., -1]
    return np.where(finite, np.degrees(np.arccos(np.clip(least, 0.0, 1.0))), np.nan)
