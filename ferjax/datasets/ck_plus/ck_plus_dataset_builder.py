"""CK+: sequences from a neutral face to the peak of an expression.

That an intensity of 0 means "present, how much is unknown" is unverified.
"""

from ferjax.datasets import builder
from ferjax.datasets.ck_plus import parser


class Builder(builder.FaceBuilder):
  """CK+: sequences from a neutral face to the peak of an expression."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask Jeffrey Cohn (University of Pittsburgh, http://www.jeffcohn.net/resources/) for the Extended
  Cohn-Kanade database, with its agreement signed; unpack pictures, Emotion, Landmarks and FACS
  into `<manual_dir>/ck_plus`.
  Terms: for non-commercial research only; only some people may be shown in publications.
  """


make = builder.maker(Builder, parser.parse)
