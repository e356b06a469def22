"""Networks. Each maps pictures f[b, h, w, 3] to a list of feature maps, one for each stage.

`cells(side)` of a network says where their cells look in square pictures of `side` pixels: a list
of `ops.cells.Cells`, one for each map.
"""

from ferjax.models.face_resnet import face_resnet29 as face_resnet29
from ferjax.models.mobilenet import mobilenet_v2 as mobilenet_v2
from ferjax.models.plain import alexnet as alexnet
from ferjax.models.plain import fmpnet as fmpnet
from ferjax.models.plain import vgg13 as vgg13
from ferjax.models.preact_resnet import preact_resnet18 as preact_resnet18
from ferjax.models.resnet import resnet10 as resnet10
from ferjax.models.resnet import resnet18 as resnet18
from ferjax.models.resnet import resnet34 as resnet34
from ferjax.models.resnet import resnet50 as resnet50
