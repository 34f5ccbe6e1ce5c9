"""Log-mel spectra: how loud a sound is in bands that are as wide as the ear's, frame by frame."""

from __future__ import annotations

import io
import math
import wave

import torch
from torch import Tensor

FLOOR = 1e-6
"""Added to the power before the logarithm; −60 dB of a full-scale sound."""


def read_wav(content: bytes, rate: int) -> Tensor:
    """The samples of a WAV file of one channel and 16 bits, float32 [N] in [−1, 1). Raises ValueError for another."""
    try:
        with wave.open(io.BytesIO(content)) as sound:
            kind = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate())
            raw = bytearray(sound.readframes(sound.getnframes()))
    except (wave.Error, EOFError) as error:
        raise ValueError(f"no WAV file ({error})") from error
    if kind != (1, 2, rate):
        raise ValueError(f"{kind[0]} channels of {8 * kind[1]} bits at {kind[2]} Hz, not one of 16 bits at {rate} Hz")
    if not raw or len(raw) % 2:
        raise ValueError("no whole samples")
    return torch.frombuffer(raw, dtype=torch.int16).float() / 32768


def mel_filters(bands: int, window: int, rate: int, lowest: float = 0.0, highest: float | None = None) -> Tensor:
    """Triangles [bands, window // 2 + 1] of height 1 over the frequencies of a spectrum, evenly spaced in mel.

    m(f) = 2595 log₁₀(1 + f / 700) (O'Shaughnessy 1987; HTK). Triangle k rises from corner k to k + 1, falls to k + 2.
    """
    top = rate / 2 if highest is None else highest
    low, high = (2595 * math.log10(1 + edge / 700) for edge in (lowest, top))
    corners = 700 * (10 ** (torch.linspace(low, high, bands + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)
    width = corners.diff().unsqueeze(1)
    rising = (frequencies - corners[:-2].unsqueeze(1)) / width[:-1]
    falling = (corners[2:].unsqueeze(1) - frequencies) / width[1:]
    return torch.minimum(rising, falling).clamp(min=0).float()


def log_mel(samples: Tensor, filters: Tensor, window: int, hop: int) -> Tensor:
    """log(filters · |STFT|² + 1e-6) of a sound [N], [frames, bands]: a Hann window every `hop` samples.

    The power is that of a windowed sine of amplitude 1 over its peak (½ Σ w)²; a sound shorter than a window is padded
    with silence.
    """
    if len(samples) < window:
        samples = torch.nn.functional.pad(samples, (0, window - len(samples)))
    shape = torch.hann_window(window)
    spectrum = torch.stft(samples, window, hop, window=shape, center=False, return_complex=True)
    power = (spectrum.abs() / (0.5 * shape.sum())).square()
    return (filters @ power + FLOOR).log().T


def pad_frames(sounds: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Sounds [frames, bands] cut or padded with 0 to `length` frames: float32 [N, length, bands], and the mask."""
    padded = torch.zeros(len(sounds), length, sounds[0].shape[1])
    mask = torch.zeros(len(sounds), length, dtype=torch.bool)
    for number, sound in enumerate(sounds):
        kept = min(length, len(sound))
        padded[number, :kept], mask[number, :kept] = sound[:kept], True
    return padded, mask
