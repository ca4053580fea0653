"""A video of 320 × 240 to 640 × 480, from file to file: ours beside the loop that one would write first."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from inference import _networks
from measure import in_turns
from training import Plain

from vdsr import video
from vdsr.upscaler import Upscaler

WIDTH, HEIGHT, SCALE = 320, 240, 2


def frames_per_second(folder: Path, frames: int, rounds: int) -> dict[str, float]:
    """Decoding, D = 20 and H.264 together: `upscale`, and a plain eager loop in fp32."""
    plain, ours = _networks()
    source, upscaler = _film(folder / "film.mp4", frames), Upscaler(ours)

    def upscale() -> None:
        video.upscale(source, folder / "ours.mp4", upscaler, Fraction(SCALE))

    seconds = in_turns({"plain": lambda: _loop(source, folder / "plain.mp4", plain), "upscale": upscale}, rounds)
    return {name: frames / value for name, value in seconds.items()}


def _film(path: Path, frames: int) -> Path:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(frames):
            grey = 128 + 60 * np.sin((rows + 3 * number) / 17) + 40 * np.sign(np.sin(columns / 9 - number / 5))
            picture = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


@torch.no_grad()
def _loop(source: Path, target: Path, plain: Plain) -> None:
    """Frame by frame: bicubic, the network on luma, H.264 with the same settings."""
    name, options = video.CODECS["h264"]
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = out.add_stream(name, rate=25, options=dict(options))
        stream.height, stream.width, stream.pix_fmt = SCALE * HEIGHT, SCALE * WIDTH, "yuv420p"
        for frame in container.decode(video=0):
            planes = torch.from_numpy(frame.reformat(format="yuv444p").to_ndarray()).float() / 255
            high = F.interpolate(planes[None], scale_factor=SCALE, mode="bicubic").clamp(0, 1)
            high[:, :1] = plain.forward(high[:, :1]).clamp(0, 1)
            array = (high[0] * 255).round().byte().numpy()
            out.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="yuv444p").reformat(format="yuv420p")))
        out.mux(stream.encode(None))
