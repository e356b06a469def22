"""BU-3DFE: six expressions with four intensities, and neutral.

Race codes other than WH and AM are unverified.
"""

from ferjax.datasets import builder
from ferjax.datasets.bu3dfe import parser


class Builder(builder.FaceBuilder):
  """BU-3DFE: six expressions with four intensities, and neutral."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask Lijun Yin (Binghamton University,
  http://www.cs.binghamton.edu/~lijun/Research/3DFE/3DFE_Analysis.html) for BU-3DFE, with its
  agreement signed by a member of the academic staff; unpack the subjects' folders into
  `<manual_dir>/bu3dfe`.
  Terms: for non-commercial research only; do not pass on any data.
  """


make = builder.maker(Builder, parser.parse)
