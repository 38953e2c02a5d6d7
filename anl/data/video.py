"""Read frames of a video, evenly spaced in time. Work and memory are bounded, whatever duration the file states."""

import contextlib
import itertools
import os
import stat
from typing import NamedTuple

import numpy as np

from anl.data.decode import HEIF_BRANDS, MAX_PIXELS, Refused
from anl.io import reason

PICTURE_BRANDS = (*HEIF_BRANDS, b"avif", b"avis", b"jp2 ", b"crx ")  # of still images in an ISO base media (MP4) file
SIGNATURE = 12         # bytes at the start of a file that identify a video
LOOK = 60              # most frames decoded to reach one sampling time
NEAR = 2.0             # seconds; a sampling time further away than this is reached by seeking, not by decoding
UNTIMED = 900          # most frames decoded if the file does not state its duration


class Frame(NamedTuple):
    """A frame: its time in seconds, and uint8 RGB (H, W, 3), upright."""

    time: float
    pixels: np.ndarray


def is_video(start):
    """Whether a file with these first bytes is an MP4, MOV, WebM or Matroska file; the name does not matter."""
    if start[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):  # QuickTime files without a file type box
        return True
    return start[4:8] == b"ftyp" and start[8:12] not in PICTURE_BRANDS or start[:4] == b"\x1a\x45\xdf\xa3"


def starts_like_video(path):
    """`is_video` of a file; False if it cannot be opened or is no regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return is_video(file.read(SIGNATURE))
    except (OSError, ValueError):
        return False


def read_frames(path, count, most_pixels=MAX_PIXELS):
    """Yield at most `count` frames of a video, evenly spaced in time.

    To reach a sampling time, at most LOOK frames are decoded from the last key frame before it. If key frames are further
    apart than that, the frame is earlier than its sampling time.

    Parameters
    ----------
    path : path-like
    count : int
    most_pixels : int
        Limit on the pixels of a frame, checked before decoding if the file states the size.

    Yields
    ------
    Frame
        In order of time, none twice.

    Raises
    ------
    Refused
        If there is no video stream, no frame can be decoded, or a frame has more than `most_pixels`.
    """
    import av  # imported here, because scoring images does not need it

    found = 0
    try:
        # a file object, so that no name or address inside the file is opened
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(path, "rb"))
            container = stack.enter_context(av.open(file, metadata_errors="ignore"))
            stream = _video_stream(container, av)
            context = stream.codec_context
            if (context.width or 0) * (context.height or 0) > most_pixels:
                raise Refused(f"a video of {context.width} x {context.height} pixels, over the limit of {most_pixels} in all")
            context.thread_type = "NONE"  # files are already read in several threads
            for frame in _chosen(container, stream, count, av):
                pixels = frame.to_ndarray(format="rgb24")
                if pixels.shape[0] * pixels.shape[1] > most_pixels:
                    raise Refused(f"a frame of {pixels.shape[1]} x {pixels.shape[0]} pixels, over the limit of {most_pixels} in all")
                found += 1
                turns = round((frame.rotation or 0) / 90) % 4
                yield Frame(float(frame.time or 0.0), np.ascontiguousarray(np.rot90(pixels, turns)))
    except Refused:
        raise
    except (av.error.FFmpegError, OSError, MemoryError, ValueError, OverflowError) as problem:
        if not found:
            text = getattr(problem, "strerror", None) or reason(problem)
            raise Refused(f"a video that cannot be decoded ({text}); it may be truncated or damaged") from None
    if not found:
        raise Refused("a video without a frame that can be decoded")


def _video_stream(container, av):
    """The first video stream that is not a cover image. Raises Refused if there is none."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic and stream.codec_context is not None:
            return stream
    kinds = sorted({stream.type for stream in container.streams})
    raise Refused(f"no video stream in it ({', '.join(kinds) or 'empty'})")


def _chosen(container, stream, count, av):
    """Yield a decoded frame for each sampling time, in order; fewer than `count` if frames are further apart."""
    duration = _duration(container, stream)
    if duration is None:
        yield from _thinned(_decoded(container, stream, av), count)
        return
    start = float(stream.start_time * stream.time_base) if stream.start_time else 0.0
    frames, place, last = _decoded(container, stream, av), start, None
    for target in start + duration * (np.arange(count) + 0.5) / count:
        if last is not None and place >= target:
            continue  # frames are further apart than the sampling times
        if target - place > NEAR:
            with contextlib.suppress(av.error.FFmpegError):  # without an index, decoding goes on from here
                container.seek(int(target / stream.time_base), stream=stream, backward=True)
                frames = _decoded(container, stream, av)
        frame = None
        for frame in itertools.islice(frames, LOOK):
            if frame.time is None or frame.time >= target:
                break
        if frame is None:
            continue
        place = frame.time if frame.time is not None else place
        if last is None or frame.pts is None or frame.pts > last:
            last = frame.pts
            yield frame


def _duration(container, stream):
    """Duration in seconds, or None if neither the stream nor the file states it."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _decoded(container, stream, av):
    """Yield decoded frames to the end of the stream, without the packets that cannot be decoded."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            continue  # a damaged packet; the decoder finds the next key frame


def _thinned(frames, count):
    """At most `count` evenly spaced frames of the first UNTIMED; at most 2 * `count` frames are held in memory."""
    kept, every = [], 1
    for number, frame in enumerate(itertools.islice(frames, UNTIMED)):
        if number % every == 0:
            kept.append(frame)
        if len(kept) == 2 * count:
            kept, every = kept[::2], 2 * every
    return kept[:count] if len(kept) <= count else [kept[place] for place in np.linspace(0, len(kept) - 1, count).round().astype(int)]
