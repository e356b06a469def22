"""MMI: sequences from neutral to a peak and back to neutral, as extracted frames.

It is unverified that the first track of a session gives the view; so are the types of AU markers.
"""

from ferjax.datasets import builder
from ferjax.datasets.mmi import parser


class Builder(builder.FaceBuilder):
  """MMI: sequences from neutral to a peak and back to neutral, as extracted frames."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask for an account at https://mmifacedb.eu (Maja Pantic, Michel Valstar), with its agreement
  signed; extract the frames of each film into a folder next to it, such as `mkdir S001-001; ffmpeg
  -i S001-001.avi S001-001/%05d.png`, and put the sessions into `<manual_dir>/mmi`.
  Terms: for non-commercial research only; do not pass on any data.
  """


make = builder.maker(Builder, parser.parse)
