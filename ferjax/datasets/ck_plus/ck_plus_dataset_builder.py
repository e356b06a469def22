"""CK+: sequences from a neutral face to the peak of an expression.

It is unverified that an intensity of 0 means "present, intensity unknown".
"""

from ferjax.datasets import builder
from ferjax.datasets.ck_plus import parser


class Builder(builder.FaceBuilder):
  """CK+: sequences from a neutral face to the peak of an expression."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask Jeffrey Cohn (University of Pittsburgh, http://www.jeffcohn.net/resources/) for the Extended
  Cohn-Kanade database, with its agreement signed; unpack pictures, Emotion, Landmarks and FACS
  into `<manual_dir>/ck_plus`.
  Terms: for non-commercial research only; publications may show some of the people only.
  """


make = builder.maker(Builder, parser.parse)
