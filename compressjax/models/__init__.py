"""Linen networks that the experiments share; nothing in the library depends on them.

All are called as `model.apply(variables, x, train)` with `x: [B, H, W, C]` float and give logits
`[B, num_classes]`. A network's widths are the standard ones times its `multiplier`, or explicit
`widths`, which `resize` finds for a shrunk one.
"""

from compressjax.models.blocks import DepthwiseSeparable as DepthwiseSeparable
from compressjax.models.blocks import GroupedBottleneck as GroupedBottleneck
from compressjax.models.blocks import InvertedResidual as InvertedResidual
from compressjax.models.blocks import SqueezeExcite as SqueezeExcite
from compressjax.models.blocks import V3Block as V3Block
from compressjax.models.mlp import MLP as MLP
from compressjax.models.mobilenet import MobileNetV2 as MobileNetV2
from compressjax.models.mobilenet import Widths as Widths
from compressjax.models.mobilenet import mobilenet_widths as mobilenet_widths
from compressjax.models.mobilenet_v1 import MobileNetV1 as MobileNetV1
from compressjax.models.mobilenet_v3 import MobileNetV3Small as MobileNetV3Small
from compressjax.models.mobilenet_v3 import V3Widths as V3Widths
from compressjax.models.mobilenet_v3 import mobilenet_v3_small_widths as mobilenet_v3_small_widths
from compressjax.models.preact_resnet import PreActResNet as PreActResNet
from compressjax.models.preact_resnet import PreActWidths as PreActWidths
from compressjax.models.preact_resnet import preact_widths as preact_widths
from compressjax.models.resize import Resizable as Resizable
from compressjax.models.resize import Shapes as Shapes
from compressjax.models.resize import resize as resize
from compressjax.models.resnet import ResNet8 as ResNet8
from compressjax.models.resnet import ResNet18 as ResNet18
from compressjax.models.small_cnn import SmallCNN as SmallCNN
from compressjax.models.vgg import VGG16 as VGG16
