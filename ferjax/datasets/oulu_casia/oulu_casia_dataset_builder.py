"""Oulu-CASIA: sequences from a neutral face to the peak of an expression.

The folders Weak and Dark are unverified.
"""

from ferjax.datasets import builder
from ferjax.datasets.oulu_casia import parser


class Builder(builder.FaceBuilder):
  """Oulu-CASIA: sequences from a neutral face to the peak of an expression."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask the Center for Machine Vision and Signal Analysis (University of Oulu, Guoying Zhao) for
  Oulu-CASIA, with its agreement signed; unpack it into `<manual_dir>/oulu_casia`.
  Terms: for non-commercial research only; do not pass on any data.
  """


make = builder.maker(Builder, parser.parse)
