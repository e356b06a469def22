"""KDEF: seven expressions from five angles.

The sign of the yaw is our convention.
"""

from ferjax.datasets import builder
from ferjax.datasets.kdef import parser


class Builder(builder.FaceBuilder):
  """KDEF: seven expressions from five angles."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask the Karolinska Institutet (https://kdef.se) for KDEF; unpack it into `<manual_dir>/kdef`.
  Terms: for non-commercial research only; cite the source.
  """


make = builder.maker(Builder, parser.parse)
