"""``python -m benchmarks.render``: our rasteriser against Embree on the same deforming head.

Visibility only is compared like with like: both get the posed vertices of each frame, ours draws them into a z-buffer,
Embree builds its tree anew (the mesh deforms) and shoots one ray a sample. The whole renderer is printed beside it.
"""

from __future__ import annotations

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh

from benchmarks.timing import race, report
from model_code.avatars import raster
from model_code.avatars.clipspec import avatar_for, draw_spec, render_spec
from model_code.avatars.performance import draw_performance
from model_code.avatars.seeds import head_seed
from model_code.seeding import rng_for

SIZE, FRAMES = 192, 8


def main() -> None:
    """Prints the ratios."""
    spec = draw_spec(head_seed("RENDERED", 0), 0, kind="natural", condition="plain", seconds=(1.0, 1.0))
    avatar = avatar_for(spec.head_seed, spec.kind)
    mouth = np.abs(rng_for("bench").normal(0, 0.2, (FRAMES, 52)))
    posed = avatar.deform(draw_performance(rng_for("bench"), mouth, motion="calm").coefficients)
    centre, side = avatar.vertices.mean(0), float(np.ptp(avatar.vertices[:, 1]))
    samples = SIZE * raster.SUPERSAMPLING
    distance = 3.2 * side
    focal = samples * distance / side
    one_sided = np.zeros(len(avatar.faces), bool)
    xy, nearness = np.zeros((len(avatar.vertices), 2), np.float32), np.zeros(len(avatar.vertices), np.float32)
    near, index = np.zeros((samples, samples), np.float32), np.zeros((samples, samples), np.int32)
    column, row = np.meshgrid(np.arange(samples) + 0.5, np.arange(samples) + 0.5)
    towards = np.stack([column - samples / 2, samples / 2 - row, np.full_like(row, -focal)], -1).reshape(-1, 3)
    directions = (towards / np.linalg.norm(towards, axis=1, keepdims=True)).astype(np.float32)
    origins = np.repeat((centre + np.array([0, 0, distance]))[None], len(directions), 0).astype(np.float32)

    def ours() -> None:
        for vertices in posed:
            raster.project(vertices, centre.astype(np.float32), distance, focal, samples / 2, xy, nearness)
            near.fill(0.0)
            index.fill(-1)
            raster.fill_triangles(xy, nearness, avatar.faces, one_sided, near, index)

    def embree() -> None:
        for vertices in posed:
            scene = rtcore_scene.EmbreeScene()
            TriangleMesh(scene, vertices[avatar.faces])
            scene.run(origins, directions, query="INTERSECT")

    best = race({"rasteriser": ours, "embree": embree})
    report(f"visibility, {samples} px, {len(avatar.faces)} triangles", "rasteriser", "embree", best, "frames/s", FRAMES)
    whole = race({"render": lambda: render_spec(spec, SIZE)}, rounds=2)["render"]
    rate, limit = spec.n_frames / whole, FRAMES / best["embree"]
    print(
        f"whole renderer with speech, light and shadow: {rate:.1f} frames/s, {rate / limit:.2f} of Embree's rays alone"
    )


if __name__ == "__main__":
    main()
