"""Metrics against scikit-learn and by hand; calibration; intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from cmt_training.metrics import (
    best_temperature,
    confusion_matrix,
    expected_calibration_error,
    metrics_of,
    softmax,
)
from cmt_training.statistics import interval_of, paired, percent


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(200, 7)) * 2, rng.integers(0, 6, 200)  # the last label never occurs
    probabilities = softmax(logits)
    came, predicted = metrics_of(probabilities, labels), probabilities.argmax(axis=1)
    assert came["weighted_f1"] == pytest.approx(
        sklearn.f1_score(labels, predicted, average="weighted", zero_division=0)
    )
    assert came["macro_f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average="macro", zero_division=0))
    assert came["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert came["cross_entropy"] == pytest.approx(sklearn.log_loss(labels, probabilities, labels=range(7)))
    wanted = sklearn.confusion_matrix(labels, predicted, labels=range(7))
    assert (confusion_matrix(probabilities, labels) == wanted).all()


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.92, 0.08], [0.6, 0.4], [0.58, 0.42]])
    labels = np.array([0, 1, 0, 0])
    # bins (13/15, 14/15]: confidence .91, accuracy .5; (8/15, 9/15]: confidence .59, accuracy 1
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.41 + 0.5 * 0.41)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


def test_the_temperature_is_the_one_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5)) * 3
    labels = np.array([rng.choice(5, p=p) for p in softmax(logits, 2.0)])
    assert best_temperature(logits, labels) == pytest.approx(2.0, rel=0.05)
    warm = softmax(logits, best_temperature(logits, labels))
    assert metrics_of(warm, labels)["ece"] < 0.02 < metrics_of(softmax(logits), labels)["ece"]


def test_nothing_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0 items"):
        metrics_of(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match="diverged"):
        metrics_of(np.array([[np.nan, 1.0]]), np.array([0]))


@pytest.mark.parametrize("count", [2, 5, 21, 40])
def test_intervals_are_those_of_students_t(count: int) -> None:
    values = np.random.default_rng(count).normal(0.7, 0.05, count)
    came = interval_of(values.tolist())
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert (came.low, came.high) == pytest.approx((low, high), rel=1e-9)
    assert came.mean == pytest.approx(values.mean())


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(ValueError, match="got 1 seeds"):
        interval_of([0.5])


def test_differences_are_seed_by_seed_and_in_percent_of_the_other() -> None:
    ours, theirs = interval_of([0.83, 0.85]), interval_of([0.79, 0.81])
    difference = paired(ours, theirs)
    assert difference.values == pytest.approx((0.04, 0.04))
    assert (difference.low, difference.high) == pytest.approx((0.04, 0.04))
    assert percent(ours, theirs) == pytest.approx(5.0)
    assert percent(ours, interval_of([0.0, 0.0])) == 0
