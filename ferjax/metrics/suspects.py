"""How sure a model is that the label of a row is wrong."""

from collections.abc import Mapping

import numpy as np

# Outputs of a method's `predict` that tell rows with a wrong label from the others: 1 if they are
# high for a wrong label, -1 if they are low.
SIGNS = {'importance': -1, 'uncertainty': 1}


def suspicion(distribution: np.ndarray, label: np.ndarray) -> np.ndarray:
  """f64[n] in 0..1: the highest probability of f[n, C] less that of the label i[n]. It is 0 where
  the label is the most probable class."""
  shares = distribution.astype(np.float64)
  return shares.max(1) - shares[np.arange(len(label)), label]


def area_under_roc(score: np.ndarray, wrong: np.ndarray) -> float | None:
  """The probability that a row with a wrong label has a higher score f[n] than a row with a right
  one, 0.5 for chance; None unless bool[n] has both kinds."""
  from sklearn.metrics import roc_auc_score  # imported here, so that training starts without it

  both = 0 < wrong.sum() < len(wrong)
  return float(roc_auc_score(wrong, np.nan_to_num(score))) if both else None


def row_scores(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The outputs f[n] of `SIGNS` that there are, higher where the label is more suspicious."""
  return {name: sign * outputs[name] for name, sign in SIGNS.items() if name in outputs}
