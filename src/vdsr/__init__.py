"""VDSR (Kim, Lee & Lee, CVPR 2016): training, evaluation and tracking."""

__version__ = "0.1.0"
