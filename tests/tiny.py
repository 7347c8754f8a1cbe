"""The smallest transformer that a whole chain still trains: settings that several tests share."""

TINY_TRANSFORMER = {
    "dim": 48,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_dim": 48,
    "audio_inner_dim": 24,
    "audio_heads": 2,
    "refiner_width": 16,
    "refiner_layers": 1,
}
