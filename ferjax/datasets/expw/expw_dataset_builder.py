"""ExpW: faces in pictures from the web."""

from ferjax.datasets import builder
from ferjax.datasets.expw import parser


class Builder(builder.FaceBuilder):
  """ExpW: faces in pictures from the web."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download ExpW from http://mmlab.ie.cuhk.edu.hk/projects/socialrelation/index.html; unpack
  `label` and `image` into `<manual_dir>/expw`.
  Terms: for non-commercial research only.
  """


make = builder.maker(Builder, parser.parse)
