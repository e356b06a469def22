"""AffectNet: the manually annotated faces, in the old or the new release.

Header lines may be missing in the lists of the old release; numbers of the new one may be stored as
text (both unverified on the originals). Arrays of Python objects are refused.
"""

from ferjax.datasets import builder
from ferjax.datasets.affectnet import parser


class Builder(builder.FaceBuilder):
  """AffectNet: the manually annotated faces, in the old or the new release."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask Mohammad Mahoor (University of Denver, http://mohammadmahoor.com/affectnet/) for AffectNet,
  with the agreement signed by the head of the laboratory; unpack it into
  `<manual_dir>/affectnet`.
  Terms: for non-commercial research by the applicant's group only; do not pass on any picture.
  """


make = builder.maker(Builder, parser.parse)
