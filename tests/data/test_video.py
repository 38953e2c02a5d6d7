"""Frames of videos: evenly spaced, upright, bounded; and one clear reason where there are none."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from anl.data import video
from anl.data.decode import Refused

SIZE = (48, 32)  # width, height


def write_video(path, frames=24, rate=12, codec="mpeg4", size=SIZE, times=None, gop=12):
    """A video whose frame k has the grey level 10 k; `times` in milliseconds make its rate variable."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), min(250, 10 * number), np.uint8), format="rgb24")
            if times:
                frame.pts = times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def levels(frames):
    return [float(frame.pixels.mean()) for frame in frames]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("a.mov", "mpeg4"), ("a.webm", "libvpx"), ("a.mkv", "mpeg4")])
def test_frames_are_evenly_spaced_in_time(tmp_path, name, codec):
    path = write_video(tmp_path / name, codec=codec)
    assert video.starts_like_video(path)
    frames = list(video.read_frames(path, 4))
    assert len(frames) == 4 and frames[0].pixels.shape == (SIZE[1], SIZE[0], 3) and frames[0].pixels.dtype == np.uint8
    assert np.allclose([frame.time for frame in frames], [0.25, 0.75, 1.25, 1.75], atol=0.1)
    assert np.allclose(levels(frames), [10 * 12 * frame.time for frame in frames], atol=8)
    times = [frame.time for frame in video.read_frames(path, 100)]
    assert 20 <= len(times) <= 24 and len(set(times)) == len(times)


def test_a_variable_rate_is_followed(tmp_path):
    times = [*range(0, 1000, 50), *range(1000, 9001, 1000)]  # 20 frames in the first second, then one a second
    path = write_video(tmp_path / "phone.mkv", frames=len(times), times=times, codec="libvpx")
    found = [frame.time for frame in video.read_frames(path, 5)]
    assert np.allclose(found, [1, 3, 5, 7, 9], atol=0.1)
    assert len(list(video.read_frames(path, 18))) <= 14  # times between two frames that are far apart give one


def test_a_long_video_is_sought_not_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", frames=600, rate=1)
    decoded, whole = [], video._decoded

    def counted(*arguments):
        for frame in whole(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video, "_decoded", counted)
    frames = list(video.read_frames(path, 4))
    assert np.allclose([frame.time for frame in frames], [75, 225, 375, 525], atol=1) and len(decoded) < 60
    monkeypatch.setattr(video, "LOOK", 3)  # no frame near enough to the key frame: an earlier one is taken
    assert all(75 + 150 * k - 12 <= frame.time <= 75 + 150 * k for k, frame in enumerate(video.read_frames(path, 4)))


def test_a_file_that_does_not_tell_its_length(tmp_path, monkeypatch):
    path = write_video(tmp_path / "live.webm", codec="libvpx")
    monkeypatch.setattr(video, "_duration", lambda *_: None)
    frames = list(video.read_frames(path, 5))
    assert len(frames) == 5 and levels(frames) == sorted(levels(frames)) and levels(frames)[-1] > 150
    monkeypatch.setattr(video, "UNTIMED", 3)
    assert len(list(video.read_frames(path, 5))) == 3


def test_a_phone_clip_is_upright(tmp_path):
    path = write_video(tmp_path / "phone.mp4")
    data = path.read_bytes()
    identity = b"".join(int(value).to_bytes(4) for value in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    turned = b"".join((value & 0xFFFFFFFF).to_bytes(4) for value in (0, 65536, 0, -65536, 0, 0, SIZE[1] << 16, 0, 1 << 30))
    place = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:place] + turned + data[place + 36:])
    frame = next(iter(video.read_frames(path, 1)))
    assert frame.pixels.shape == (SIZE[0], SIZE[1], 3)


def picture(kind):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return stream.getvalue()


def test_pictures_are_no_videos(tmp_path):
    for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF"):
        assert not video.is_video(picture(kind)[:video.SIGNATURE])
    assert not video.starts_like_video(tmp_path) and not video.starts_like_video(tmp_path / "none")


def test_what_cannot_be_read_has_a_reason(tmp_path):
    whole = write_video(tmp_path / "whole.mp4").read_bytes()
    sound = tmp_path / "sound.m4a"
    with av.open(str(sound), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 8000
        container.mux(stream.encode(tone))
        container.mux(stream.encode(None))
    with pytest.raises(Refused, match=r"no video stream in it \(audio\)"):
        list(video.read_frames(sound, 2))
    for name, data in (("cut", whole[:len(whole) // 3]), ("head", whole[:40]), ("garbage", whole[:32] + b"\0" * 400)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Refused, match="a video that cannot be decoded|without a frame"):
            list(video.read_frames(tmp_path / name, 2))
    with pytest.raises(Refused, match="a video of 48 x 32 pixels, over the limit of 100"):
        list(video.read_frames(tmp_path / "whole.mp4", 2, most_pixels=100))
    with pytest.raises(Refused, match="cannot be decoded"):
        list(video.read_frames(tmp_path / "none.mp4", 2))


def test_what_is_left_of_a_cut_webm_is_used(tmp_path):
    data = write_video(tmp_path / "whole.webm", codec="libvpx").read_bytes()
    (tmp_path / "cut.webm").write_bytes(data[:int(len(data) * 0.7)])
    frames = list(video.read_frames(tmp_path / "cut.webm", 4))
    assert 1 <= len(frames) <= 4
