"""VDSR (Kim, Lee & Lee, CVPR 2016): training, evaluation, tracking and use.

from vdsr import Upscaler

upscaler = Upscaler.load()                     # the network that comes with the repository, or a weights file
larger = upscaler.upscale(picture, scale=3)    # a NumPy array, a Pillow image or a torch tensor; the same back
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdsr.upscaler import Upscaler as Upscaler

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import torch no sooner than someone asks for the upscaler."""
    if name == "Upscaler":
        from vdsr.upscaler import Upscaler

        return Upscaler
    raise AttributeError(f"module 'vdsr' has no attribute '{name}'")
