"""SFEW 2.0: frames of films."""

from ferjax.datasets import builder
from ferjax.datasets.sfew import parser


class Builder(builder.FaceBuilder):
  """SFEW 2.0: frames of films."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask Abhinav Dhall (https://sites.google.com/view/emotiw2020) for SFEW 2.0, with its agreement
  signed; unpack Train, Val and their aligned faces into `<manual_dir>/sfew`.
  Terms: for non-commercial research only; do not pass on any picture.
  """


make = builder.maker(Builder, parser.parse)
