"""MMI: sequences from neutral over a peak to neutral, as extracted frames.

That a session's first track gives the view is unverified, and so are the types of AU markers.
"""

from ferjax.datasets import builder
from ferjax.datasets.mmi import parser


class Builder(builder.FaceBuilder):
  """MMI: sequences from neutral over a peak to neutral, as extracted frames."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask for an account at https://mmifacedb.eu (Maja Pantic, Michel Valstar), with its agreement
  signed; extract the frames of each film beside it, such as `mkdir S001-001; ffmpeg -i
  S001-001.avi S001-001/%05d.png`, and put the sessions into `<manual_dir>/mmi`.
  Terms: for non-commercial research only; no data may be passed on.
  """


make = builder.maker(Builder, parser.parse)
