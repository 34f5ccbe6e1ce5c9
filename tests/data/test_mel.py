"""Log-mel spectra against sums written out, and the reader of WAV files."""

import io
import math
import wave

import numpy as np
import pytest
import torch

from advml.data.mel import FLOOR, log_mel, mel_filters, pad_frames, read_wav


def wav(samples, rate=8000, channels=1, width=2):
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(np.asarray(samples, dtype="<i2").tobytes())
    return stream.getvalue()


def mel(frequency):
    return 2595 * math.log10(1 + frequency / 700)


def plain(samples, bands, window, hop, rate):
    """Frame by frame, bin by bin, triangle by triangle, in float64."""
    shape = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    corners = [700 * (10 ** (mel(rate / 2) * k / (bands + 1) / 2595) - 1) for k in range(bands + 2)]
    frames = []
    for start in range(0, len(samples) - window + 1, hop):
        piece = np.array([samples[start + n] * shape[n] for n in range(window)])
        power = np.array([
            abs(sum(piece[n] * np.exp(-2j * math.pi * k * n / window) for n in range(window))) ** 2
            for k in range(window // 2 + 1)
        ]) / (0.5 * sum(shape)) ** 2  # fmt: skip
        row = []
        for band in range(bands):
            low, middle, high = corners[band : band + 3]
            total = 0.0
            for k, value in enumerate(power):
                at = k * rate / window
                if low < at <= middle:
                    total += value * (at - low) / (middle - low)
                elif middle < at < high:
                    total += value * (high - at) / (high - middle)
            row.append(math.log(total + FLOOR))
        frames.append(row)
    return np.array(frames)


def test_log_mel_is_the_sum_written_out():
    samples = torch.randn(75, generator=torch.Generator().manual_seed(0))
    found = log_mel(samples, mel_filters(5, 32, 8000), 32, 16)
    np.testing.assert_allclose(found.numpy(), plain(samples.tolist(), 5, 32, 16, 8000), rtol=1e-4, atol=1e-4)
    assert found.shape == (3, 5)


def test_a_tone_is_loudest_in_its_band():
    filters = mel_filters(24, 256, 8000)
    centres = [700 * (10 ** (mel(4000) * (k + 1) / 25 / 2595) - 1) for k in range(24)]
    for band in (3, 10, 20):
        tone = torch.sin(2 * math.pi * centres[band] / 8000 * torch.arange(2000))
        assert (log_mel(tone, filters, 256, 128).argmax(1) == band).all()


def test_silence_and_short_sounds():
    filters = mel_filters(4, 32, 8000)
    torch.testing.assert_close(log_mel(torch.zeros(64), filters, 32, 16), torch.full((3, 4), math.log(FLOOR)))
    assert log_mel(torch.ones(10), filters, 32, 16).shape == (1, 4)


def test_frames_are_padded_and_cut():
    padded, mask = pad_frames([torch.ones(2, 3), torch.full((6, 3), 2.0)], 4)
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert torch.equal(padded[0], torch.tensor([1.0, 1.0, 0.0, 0.0]).unsqueeze(1).expand(4, 3))
    assert (padded[1] == 2).all()


def test_wav_files():
    assert read_wav(wav([0, 16384, -32768]), 8000).tolist() == [0.0, 0.5, -1.0]
    for content, words in (
        (b"RIFF", "no WAV file"), (wav([1, 2], rate=16000), "at 16000 Hz"), (wav([1, 2], channels=2), "2 channels"),
        (wav([]), "no whole samples"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_wav(content, 8000)
