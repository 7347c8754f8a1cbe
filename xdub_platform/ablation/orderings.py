"""The orderings that the ablations ask about: the paper's seven that are to be reproduced, and what stands beside."""

from __future__ import annotations

from model_code.metrics.ablation import Claim, Ordering

FID, LPIPS, SYNC_C, CSIM = "perceptual_frechet", "perceptual_distance", "sync_c", "identity"


def over(better: str, worse: str, *measures: str) -> tuple[Claim, ...]:
    """`better` is better than `worse` in each of the measures."""
    return tuple(Claim(better=better, worse=worse, measure=measure) for measure in measures)


ORDERINGS = (
    Ordering(
        name="token_over_channel",
        title="With reference tokens over channels alone",
        table="5",
        claims=over("full", "channel_concat", SYNC_C, CSIM),
        counted=True,
    ),
    Ordering(
        name="phases_over_uniform",
        title="Multi-phase over one phase at uniform t",
        table="5",
        claims=over("full", "uniform", FID, LPIPS, SYNC_C, CSIM),
        counted=True,
    ),
    Ordering(
        name="lip_expert",
        title="With over without lip expert",
        table="5",
        claims=over("full", "no_lip", SYNC_C),
        counted=True,
    ),
    Ordering(
        name="texture_expert",
        title="With over without texture expert",
        table="5",
        claims=over("full", "no_texture", FID, LPIPS, CSIM),
        counted=True,
    ),
    Ordering(
        name="short_segments",
        title="Short segments: identity up, sync down",
        table="6",
        claims=(*over("generator_short", "generator_long", CSIM), *over("generator_long", "generator_short", SYNC_C)),
        counted=True,
    ),
    Ordering(
        name="windows",
        title="Experts in their windows over everywhere",
        table="8",
        claims=(*over("windows", "lip_always", FID, SYNC_C), *over("windows", "texture_always", SYNC_C)),
        counted=True,
    ),
    Ordering(
        name="editor_over_inpainting",
        title="Editor over generator*",
        table="10",
        claims=over("full", "inpainting_uniform", LPIPS, SYNC_C, CSIM),
        counted=True,
    ),
    Ordering(
        name="editor_over_its_data",
        title="Editor over its constructed training data",
        table="4",
        claims=over("full", "constructed", FID, SYNC_C, CSIM),
    ),
    Ordering(
        name="tokens_alone",
        title="Tokens alone over channels alone",
        table="5",
        claims=over("token_concat", "channel_concat", SYNC_C, CSIM),
    ),
    Ordering(
        name="lip_shift",
        title="Lip shift 1.5 over 0.8 in sync, over 3 in picture",
        table="7",
        claims=(*over("no_texture", "lip_shift_08", SYNC_C), *over("no_texture", "lip_shift_3", FID, LPIPS)),
    ),
    Ordering(
        name="texture_shift",
        title="Texture shift 0.2 over 0.8",
        table="7",
        claims=over("full", "texture_shift_08", FID, LPIPS, SYNC_C),
    ),
    Ordering(
        name="lip_window",
        title="Lip window [0.4, 0.8] over earlier in picture, over later in sync too",
        table="8",
        claims=(*over("windows", "lip_early", FID, LPIPS), *over("windows", "lip_late", FID, LPIPS, SYNC_C)),
    ),
    Ordering(
        name="texture_window",
        title="Texture window [0, 0.3] over [0.1, 0.4]",
        table="8",
        claims=over("windows", "texture_later", FID, LPIPS, SYNC_C),
    ),
    Ordering(
        name="editor_over_multi_phase_inpainting",
        title="Editor over multi-phase generator*",
        table="10",
        claims=over("full", "inpainting", FID, LPIPS, SYNC_C),
    ),
    Ordering(
        name="relit_under_changing_light",
        title="Relit pairs help under changing light",
        table="pairs",
        claims=over("light_relit", "light_generated", "opening", LPIPS, CSIM),
    ),
    Ordering(
        name="rendered_beside_generated",
        title="Rendered pairs add to generated and relit ones",
        table="pairs",
        claims=over("editor", "pairs_relit", "opening", LPIPS),
    ),
    Ordering(
        name="generated_beside_rendered",
        title="Generated and relit pairs add to rendered ones",
        table="pairs",
        claims=over("editor", "pairs_rendered", "opening", LPIPS),
    ),
)
