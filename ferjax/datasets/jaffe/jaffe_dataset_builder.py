"""JAFFE: ten Japanese women, seven expressions."""

from ferjax.datasets import builder
from ferjax.datasets.jaffe import parser


class Builder(builder.FaceBuilder):
  """JAFFE: ten Japanese women, seven expressions."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download JAFFE from https://zenodo.org/records/3451524 (Michael Lyons) after agreeing to its
  terms; unpack the pictures into `<manual_dir>/jaffe`.
  Terms: for non-commercial research only; do not pass on any picture.
  """


make = builder.maker(Builder, parser.parse)
