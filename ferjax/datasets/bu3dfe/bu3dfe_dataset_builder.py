"""BU-3DFE: six expressions in four strengths, and neutral.

Race codes other than WH and AM are unverified.
"""

from ferjax.datasets import builder
from ferjax.datasets.bu3dfe import parser


class Builder(builder.FaceBuilder):
  """BU-3DFE: six expressions in four strengths, and neutral."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask Lijun Yin (Binghamton University,
  http://www.cs.binghamton.edu/~lijun/Research/3DFE/3DFE_Analysis.html) for BU-3DFE, with its
  agreement signed by a member of the academic staff; unpack the subjects' folders into
  `<manual_dir>/bu3dfe`.
  Terms: for non-commercial research only; no data may be passed on.
  """


make = builder.maker(Builder, parser.parse)
