"""Shapes of `DubbingTransformer` by name."""

from __future__ import annotations

from model_code.config import TransformerConfig

PRESETS: dict[str, TransformerConfig] = {
    # The embedded scale: what `make demo` trains.
    "tiny": TransformerConfig(),
    # The debug scale: what tests train.
    "debug": TransformerConfig(
        dim=48,
        num_layers=2,
        num_heads=2,
        ffn_dim=96,
        freq_dim=32,
        audio_inner_dim=32,
        audio_layers=1,
        refiner_width=32,
        refiner_layers=2,
    ),
    # The paper (section 4.1): about 1B parameters, 2D spatial and 3D attention in every block, Whisper with n = 16
    # features a latent frame. Depth and width are not given there: ours are chosen for the count.
    "xdub-paper-1b": TransformerConfig(
        dim=1536,
        num_layers=18,
        num_heads=12,
        ffn_dim=6144,
        freq_dim=256,
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        audio_dim=1280,
        audio_window=16,
        audio_inner_dim=768,
        audio_heads=12,
        audio_layers=2,
        positions=0,
        audio_modulation=False,
        residual=False,
        context_fill="grey",
        refiner_layers=0,
        precondition=0.0,
        spatial_attention=True,
    ),
    # The release: Wan2.2-TI2V-5B with [Whisper large-v2, wav2vec2-base] features.
    "xdub-wan-5b": TransformerConfig(
        dim=3072,
        num_layers=30,
        num_heads=24,
        ffn_dim=14336,
        freq_dim=256,
        in_channels=48,
        out_channels=48,
        text_dim=4096,
        audio_dim=2048,
        audio_window=8,
        audio_inner_dim=1536,
        audio_heads=24,
        audio_layers=4,
        positions=0,
        audio_modulation=False,
        residual=False,
        context_fill="grey",
        refiner_layers=0,
        precondition=0.0,
    ),
}
