"""CMU Multi-PIE: faces from thirteen sides and under many lights.

The signs of the yaws between the profiles are inferred from the order of the cameras; that light 7
is the frontal flash, and the range of lights, are unverified.
"""

from ferjax.datasets import builder
from ferjax.datasets.multi_pie import parser


class Builder(builder.FaceBuilder):
  """CMU Multi-PIE: faces from thirteen sides and under many lights."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Order Multi-PIE from Carnegie Mellon University
  (http://www.cs.cmu.edu/afs/cs/project/PIE/MultiPie/Multi-Pie/Home.html), with its agreement
  signed; connect its folder `data` into `<manual_dir>/multi_pie`.
  Terms: for internal research only; no data may be passed on, and only some people may be shown.
  """


make = builder.maker(Builder, parser.parse)
