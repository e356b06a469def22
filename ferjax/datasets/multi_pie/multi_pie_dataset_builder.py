"""CMU Multi-PIE: faces from thirteen angles in many lights.

The signs of the yaws between the profiles are inferred from the order of the cameras. It is
unverified that light 7 is the frontal flash, and that the lights are 0 to 19.
"""

from ferjax.datasets import builder
from ferjax.datasets.multi_pie import parser


class Builder(builder.FaceBuilder):
  """CMU Multi-PIE: faces from thirteen angles in many lights."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Order Multi-PIE from Carnegie Mellon University
  (http://www.cs.cmu.edu/afs/cs/project/PIE/MultiPie/Multi-Pie/Home.html), with its agreement
  signed; link or copy its folder `data` into `<manual_dir>/multi_pie`.
  Terms: for internal research only; do not pass on any data, and show some of the people only.
  """


make = builder.maker(Builder, parser.parse)
