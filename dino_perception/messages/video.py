"""Camera pictures that come as video: one packet a picture, each of which needs the ones before it.

ffmpeg_image_transport_msgs/FFMPEGPacket and Foxglove's CompressedVideo, in H.264 or H.265, by PyAV where it is
installed. Streams for robots have no pictures that wait for later ones (B frames); those of others are refused.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np

from dino_perception.messages.images import MAX_MEGAPIXELS, ImageError

_CODECS = {"h264": "h264|x264|h.264|avc", "hevc": "hevc|h265|x265|h.265"}


def codec_of(message: Any) -> str:
    """FFmpeg's name of a packet's codec. Raises ImageError for one that is not known, or without PyAV."""
    said = str(getattr(message, "encoding", "") or getattr(message, "format", ""))
    found = next((name for name, pattern in _CODECS.items() if re.search(pattern, said.lower())), None)
    if found is None:
        raise ImageError(f"the video's encoding is '{said}'; accepted are H.264 and H.265")
    if importlib.util.find_spec("av") is None:
        raise ImageError(f"the video's encoding is '{said}', which needs PyAV; install it with: pip install av")
    return found


def is_key(message: Any) -> bool:
    """Whether decoding can begin at this packet."""
    if hasattr(message, "flags"):
        return bool(int(message.flags) & 1)  # AV_PKT_FLAG_KEY
    codec, data = codec_of(message), bytes(message.data)
    units = [data[found.end()] for found in re.finditer(b"\0\0\1", data) if found.end() < len(data)]
    if codec == "h264":
        return any(unit & 31 in (5, 7) for unit in units)  # IDR picture, sequence parameters (H.264, table 7-1)
    return any(16 <= (unit >> 1 & 63) <= 21 or unit >> 1 & 63 in (32, 33) for unit in units)  # H.265, table 7-1


class VideoDecoder:
    """Decodes the packets of one camera, which must come in order. It keeps the state of the stream."""

    def __init__(self, max_megapixels: float = MAX_MEGAPIXELS):
        self._max_megapixels = max_megapixels
        self._codec: Any = None
        self._name, self._count = "", 0

    def decode(self, message: Any) -> np.ndarray:
        """The (H, W, 3) uint8 RGB pixels of a packet. Raises ImageError, also before the first key frame; the stream
        goes on with the next packet."""
        import av

        name = codec_of(message)
        if name != self._name:
            self._name, self._codec = name, av.CodecContext.create(name, "r")
            self._codec.thread_count = 1  # threads hold pictures back
            self._codec.options = {"flags": "low_delay"}
        packet = av.Packet(bytes(message.data))
        self._count += 1
        packet.pts = packet.dts = self._count
        try:
            found = [frame for frame in self._codec.decode(packet) if frame.pts == self._count]
        except av.FFmpegError as error:
            raise ImageError(f"the {name} packet of {packet.size} bytes cannot be decoded: {error}") from None
        if not found:
            raise ImageError(
                f"the {name} packet of {packet.size} bytes gives no picture: no key frame came before it, "
                "it is damaged, or the stream has B frames"
            )
        frame = found[-1]
        if frame.width * frame.height > 1e6 * self._max_megapixels:
            raise ImageError(
                f"the video is {frame.width} x {frame.height} pixels; max_megapixels is {self._max_megapixels:g}"
            )
        return np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
