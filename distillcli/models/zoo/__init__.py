"""The nets of CIFAR's benchmark tables, for images of 32 pixels, which timm does not have.

Importing this package makes them timm models: ``cifar_resnet8``, ``cifar_wrn_16_2`` and so on. Every weight has the
name that it has in RepDistiller and mdistiller, so that their checkpoints load as they are.
"""

from distillcli.models.zoo import mobilenetv2, resnet, resnet50, shufflenetv1, shufflenetv2, vgg, wrn

__all__ = ["mobilenetv2", "resnet", "resnet50", "shufflenetv1", "shufflenetv2", "vgg", "wrn"]
