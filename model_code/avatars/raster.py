"""A small z-buffered triangle rasteriser with per-pixel shading, compiled by numba.

Geometry is sampled ``SUPERSAMPLING`` x ``SUPERSAMPLING`` times a pixel. Shading is deferred: it runs once for
every triangle that a pixel shows, at the centroid of that triangle's samples, so that hidden surfaces cost
nothing. Attributes are interpolated perspective-correctly. One thread; same input, same bytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

SUPERSAMPLING = 2
TONE_STEPS = 4096
TONE_RANGE = 4.0
N_LIGHTS = 3


def tone_table() -> Array:
    """Linear light 0..TONE_RANGE to display values: a soft shoulder (nothing burns out), then the sRGB curve.

    Returns:
        (TONE_STEPS,) float32 in [0, 255].
    """
    linear = np.linspace(0.0, TONE_RANGE, TONE_STEPS)
    shown = 1.0 - np.exp(-1.35 * linear)
    encoded = np.where(shown <= 0.0031308, 12.92 * shown, 1.055 * np.maximum(shown, 1e-9) ** (1 / 2.4) - 0.055)
    return (255.0 * np.clip(encoded, 0.0, 1.0)).astype(np.float32)


def inverse_tone(display: Array) -> Array:
    """The linear light that `tone_table` shows as ``display`` (0..1)."""
    display = np.asarray(display, np.float64)
    shown = np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    return (-np.log(np.maximum(1.0 - shown, 1e-3)) / 1.35).astype(np.float32)


@njit(cache=True)
def fill_triangles(
    xy: Array, nearness: Array, faces: Array, two_sided: Array, near_buffer: Array, index_buffer: Array
) -> None:
    """Draws triangles into a z-buffer.

    Args:
        xy: (V, 2) positions in samples, y down; sample (row, column) lies at (column + 0.5, row + 0.5).
        nearness: (V,) a quantity linear on screen that grows towards the viewer; <= 0 is behind the camera.
        faces: (F, 3) counter-clockwise seen from the front (in a y-up world).
        two_sided: (F,) whether the back is drawn too.
        near_buffer: (N, M) float32, updated; start it at 0 (perspective) or at a very small number.
        index_buffer: (N, M) int32, updated with the visible face; start it at -1.
    """
    height, width = near_buffer.shape
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        if nearness[a] <= 0.0 or nearness[b] <= 0.0 or nearness[c] <= 0.0:
            continue
        ax, ay, bx, by = float(xy[a, 0]), float(xy[a, 1]), float(xy[b, 0]), float(xy[b, 1])
        cx, cy = float(xy[c, 0]), float(xy[c, 1])
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area < 0.0:  # counter-clockwise in the world is clockwise with y down: swap to a positive area
            b, c = c, b
            bx, by, cx, cy = cx, cy, bx, by
            area = -area
        elif not two_sided[face]:
            continue
        if area < 1e-9:
            continue
        x0 = max(0, math.ceil(min(ax, bx, cx) - 0.5))
        x1 = min(width - 1, math.floor(max(ax, bx, cx) - 0.5))
        y0 = max(0, math.ceil(min(ay, by, cy) - 0.5))
        y1 = min(height - 1, math.floor(max(ay, by, cy) - 0.5))
        if x0 > x1 or y0 > y1:
            continue
        # Edge functions: opposite a, b, c; the top-left rule gives shared edges to exactly one triangle.
        ux, uy = by - cy, cx - bx
        vx, vy = cy - ay, ax - cx
        wx, wy = ay - by, bx - ax
        u_edge = ux > 0.0 or (ux == 0.0 and uy > 0.0)
        v_edge = vx > 0.0 or (vx == 0.0 and vy > 0.0)
        w_edge = wx > 0.0 or (wx == 0.0 and wy > 0.0)
        na, nb, nc = nearness[a] / area, nearness[b] / area, nearness[c] / area
        px = x0 + 0.5
        for y in range(y0, y1 + 1):
            py = y + 0.5
            u = (px - bx) * ux + (py - by) * uy
            v = (px - cx) * vx + (py - cy) * vy
            w = (px - ax) * wx + (py - ay) * wy
            for x in range(x0, x1 + 1):
                inside = u >= 0.0 and v >= 0.0 and w >= 0.0
                if inside and (u > 0.0 or u_edge) and (v > 0.0 or v_edge) and (w > 0.0 or w_edge):
                    depth = np.float32(u * na + v * nb + w * nc)
                    if depth > near_buffer[y, x]:
                        near_buffer[y, x] = depth
                        index_buffer[y, x] = face
                u += ux
                v += vx
                w += wx


@njit(cache=True, fastmath=True)
def vertex_normals(vertices: Array, faces: Array, normals: Array) -> None:
    """Area-weighted vertex normals of a mesh; (V, 3) into ``normals``, in place."""
    normals[:] = 0.0
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        vx, vy, vz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in range(3):
            i = faces[face, k]
            normals[i, 0] += nx
            normals[i, 1] += ny
            normals[i, 2] += nz
    for i in range(normals.shape[0]):
        nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
        scale = np.float32(1.0) / (math.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-12))
        normals[i, 0] *= scale
        normals[i, 1] *= scale
        normals[i, 2] *= scale


@njit(cache=True)
def light_visibility(
    vertices: Array,
    normals: Array,
    faces: Array,
    two_sided: Array,
    axes: Array,
    scale: float,
    bias: float,
    resolution: int,
    out: Array,
) -> None:
    """How much of a far light each vertex sees, 0..1: a shadow map looked up in a 4 x 4 neighbourhood.

    Args:
        vertices: (V, 3).
        normals: (V, 3) unit.
        faces: (F, 3).
        two_sided: (F,) whether the back of a face casts shadow too.
        axes: (3, 3) rows right, up, towards the light.
        scale: texels a world unit.
        bias: world units a surface must be nearer to the light to cast a shadow.
        resolution: side of the square map, centred on the origin.
        out: (V,) float32, written.
    """
    n = vertices.shape[0]
    xy = np.empty((n, 2), np.float32)
    nearness = np.empty(n, np.float32)
    for i in range(n):
        x, y, z = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        xy[i, 0] = (axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z) * scale + resolution / 2
        xy[i, 1] = resolution / 2 - (axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z) * scale
        nearness[i] = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z + 100.0
    depth = np.zeros((resolution, resolution), np.float32)
    index = np.full((resolution, resolution), -1, np.int32)
    fill_triangles(xy, nearness, faces, two_sided, depth, index)
    for i in range(n):
        slope = axes[2, 0] * normals[i, 0] + axes[2, 1] * normals[i, 1] + axes[2, 2] * normals[i, 2]
        limit = nearness[i] + bias * (1.0 + 2.0 * (1.0 - min(1.0, max(0.0, slope))))
        column, row = math.floor(xy[i, 0] - 0.5), math.floor(xy[i, 1] - 0.5)
        seen = 0
        for dy in range(-1, 3):
            for dx in range(-1, 3):
                x1, y1 = column + dx, row + dy
                if x1 < 0 or y1 < 0 or x1 >= resolution or y1 >= resolution or depth[y1, x1] <= limit:
                    seen += 1
        out[i] = seen / 16.0


@njit(cache=True, fastmath=True)
def resolve_pixels(
    xy: Array,
    nearness: Array,
    normals: Array,
    colors: Array,
    gloss: Array,
    ambient: Array,
    key_seen: Array,
    faces: Array,
    part: Array,
    wrap: Array,
    index_buffer: Array,
    light_directions: Array,
    light_colors: Array,
    sky: Array,
    ground: Array,
    background: Array,
    tone: Array,
    view_scale: float,
    first_occluder: int,
    frame: Array,
    occluder: Array,
) -> None:
    """Shades the visible triangles of every pixel and filters the samples down.

    Args:
        xy: (V, 2) positions in samples.
        nearness: (V,) one over the depth.
        normals: (V, 3) unit, world.
        colors: (V, 3) linear albedo.
        gloss: (V,) 0..1.
        ambient: (V,) openness to light from everywhere, 0..1.
        key_seen: (V,) share of the key light that arrives, 0..1.
        faces: (F, 3).
        part: (F,) row of ``wrap``.
        wrap: (P, 3) how far light of each colour wraps around the terminator.
        index_buffer: (2S, 2S) visible face or -1.
        light_directions: (3, 3) unit vectors towards key, fill and rim light.
        light_colors: (3, 3) linear.
        sky: (3,) ambient light from above; ground: (3,) from below.
        background: (S, S, 3) linear.
        tone: table of `tone_table`.
        view_scale: samples per unit of tangent (the focal length).
        first_occluder: faces from here on belong to the occluder.
        frame: (S, S, 3) uint8, written.
        occluder: (S, S) bool, written: true where any sample shows the occluder.
    """
    size = frame.shape[0]
    half = np.float32(index_buffer.shape[0] / 2)
    one = np.float32(1.0)
    zero = np.float32(0.0)
    focal = np.float32(view_scale)
    n_samples = SUPERSAMPLING * SUPERSAMPLING
    tone_scale = np.float32((TONE_STEPS - 1) / TONE_RANGE)
    ids = np.empty(n_samples, np.int32)
    for row in range(size):
        for column in range(size):
            for s in range(n_samples):
                ids[s] = index_buffer[
                    row * SUPERSAMPLING + s // SUPERSAMPLING, column * SUPERSAMPLING + s % SUPERSAMPLING
                ]
            red, green, blue = zero, zero, zero
            hidden = False
            if ids[0] == -1 and ids[1] == -1 and ids[2] == -1 and ids[3] == -1:
                for k in range(3):
                    level = min(TONE_STEPS - 1, int(background[row, column, k] * tone_scale))
                    frame[row, column, k] = np.uint8(tone[level] + np.float32(0.5))
                occluder[row, column] = False
                continue
            for s in range(n_samples):
                face = ids[s]
                if face == -2:
                    continue
                count = 0
                sx, sy = zero, zero
                for q in range(s, n_samples):
                    if ids[q] == face:
                        count += 1
                        sx += np.float32(column * SUPERSAMPLING + q % SUPERSAMPLING) + np.float32(0.5)
                        sy += np.float32(row * SUPERSAMPLING + q // SUPERSAMPLING) + np.float32(0.5)
                        ids[q] = -2
                share = np.float32(count)
                if face == -1:
                    red += share * background[row, column, 0]
                    green += share * background[row, column, 1]
                    blue += share * background[row, column, 2]
                    continue
                if face >= first_occluder:
                    hidden = True
                sx /= share
                sy /= share
                a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
                ax, ay, bx, by, cx, cy = xy[a, 0], xy[a, 1], xy[b, 0], xy[b, 1], xy[c, 0], xy[c, 1]
                area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
                u = ((bx - sx) * (cy - sy) - (cx - sx) * (by - sy)) / area * nearness[a]
                v = ((cx - sx) * (ay - sy) - (ax - sx) * (cy - sy)) / area * nearness[b]
                w = ((ax - sx) * (by - sy) - (bx - sx) * (ay - sy)) / area * nearness[c]
                total = u + v + w
                u /= total
                v /= total
                w /= total
                nx = u * normals[a, 0] + v * normals[b, 0] + w * normals[c, 0]
                ny = u * normals[a, 1] + v * normals[b, 1] + w * normals[c, 1]
                nz = u * normals[a, 2] + v * normals[b, 2] + w * normals[c, 2]
                scale = one / (math.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-9))
                if area > zero:  # seen from behind
                    scale = -scale
                nx *= scale
                ny *= scale
                nz *= scale
                vx, vy, vz = (half - sx) / focal, (sy - half) / focal, one
                scale = one / math.sqrt(vx * vx + vy * vy + one)
                vx *= scale
                vy *= scale
                vz *= scale
                open_sky = u * ambient[a] + v * ambient[b] + w * ambient[c]
                seen = u * key_seen[a] + v * key_seen[b] + w * key_seen[c]
                shine = u * gloss[a] + v * gloss[b] + w * gloss[c]
                kind = part[face]
                up = np.float32(0.5) + np.float32(0.5) * ny
                dr = open_sky * (up * sky[0] + (one - up) * ground[0])
                dg = open_sky * (up * sky[1] + (one - up) * ground[1])
                db = open_sky * (up * sky[2] + (one - up) * ground[2])
                hr, hg, hb = zero, zero, zero
                gleam = (one + shine) * (one + shine)
                exponent = np.float32(7.0 / 8.0) * gleam * gleam * (one + shine)
                for k in range(N_LIGHTS):
                    lx, ly, lz = light_directions[k, 0], light_directions[k, 1], light_directions[k, 2]
                    facing = nx * lx + ny * ly + nz * lz
                    # Direct light is dimmed a little by openness too: it stands for a lamp with an area.
                    reach = seen if k == 0 else np.float32(0.25) + np.float32(0.75) * open_sky
                    reach *= np.float32(0.5) + np.float32(0.5) * open_sky
                    r, g, bl = light_colors[k, 0] * reach, light_colors[k, 1] * reach, light_colors[k, 2] * reach
                    wr, wg, wb = wrap[kind, 0], wrap[kind, 1], wrap[kind, 2]
                    dr += r * max(zero, (facing + wr) / (one + wr))
                    dg += g * max(zero, (facing + wg) / (one + wg))
                    db += bl * max(zero, (facing + wb) / (one + wb))
                    if facing > zero and shine > np.float32(0.01):
                        hx, hy, hz = lx + vx, ly + vy, lz + vz
                        ndh = (nx * hx + ny * hy + nz * hz) / math.sqrt(hx * hx + hy * hy + hz * hz)
                        lobe = one - exponent * (one - ndh)  # lobe^8 is close to Blinn-Phong's ndh^(8 exponent)
                        if lobe > zero:
                            lobe *= lobe
                            lobe *= lobe
                            power = lobe * lobe * shine * shine * np.float32(1.6) * min(one, facing * np.float32(4.0))
                            hr += r * power
                            hg += g * power
                            hb += bl * power
                edge = one - max(zero, nx * vx + ny * vy + nz * vz)
                edge2 = edge * edge
                mirror = (np.float32(0.05) * shine + shine * np.float32(0.5) * edge2 * edge2) * open_sky
                red += share * (dr * (u * colors[a, 0] + v * colors[b, 0] + w * colors[c, 0]) + hr + mirror * sky[0])
                green += share * (dg * (u * colors[a, 1] + v * colors[b, 1] + w * colors[c, 1]) + hg + mirror * sky[1])
                blue += share * (db * (u * colors[a, 2] + v * colors[b, 2] + w * colors[c, 2]) + hb + mirror * sky[2])
            norm = tone_scale / np.float32(n_samples)
            last = TONE_STEPS - 1
            frame[row, column, 0] = np.uint8(tone[min(last, int(red * norm))] + np.float32(0.5))
            frame[row, column, 1] = np.uint8(tone[min(last, int(green * norm))] + np.float32(0.5))
            frame[row, column, 2] = np.uint8(tone[min(last, int(blue * norm))] + np.float32(0.5))
            occluder[row, column] = hidden


@njit(cache=True)
def rotation_matrix(yaw: float, pitch: float, roll: float, out: Array) -> None:
    """(3, 3) rotation Ry(yaw) Rx(pitch) Rz(roll); positive yaw turns to the viewer's right, positive pitch down."""
    cy, sy, cp, sp, cr, sr = (
        math.cos(yaw),
        math.sin(yaw),
        math.cos(pitch),
        math.sin(pitch),
        math.cos(roll),
        math.sin(roll),
    )
    out[0, 0], out[0, 1], out[0, 2] = cy * cr + sy * sp * sr, sy * sp * cr - cy * sr, sy * cp
    out[1, 0], out[1, 1], out[1, 2] = cp * sr, cp * cr, -sp
    out[2, 0], out[2, 1], out[2, 2] = cy * sp * sr - sy * cr, sy * sr + cy * sp * cr, cy * cp


@njit(cache=True)
def pose_vertices(
    vertices: Array,
    follow: Array,
    pivot: Array,
    head_rotation: Array,
    head_shift: Array,
    body_rotation: Array,
    body_shift: Array,
    out: Array,
) -> None:
    """Turns a head on its neck: every vertex by angles between the body's and the head's, about one pivot.

    Args:
        vertices: (V, 3).
        follow: (V,) 1 moves with the head, 0 with the body.
        pivot: (3,).
        head_rotation: (3,) yaw, pitch, roll; head_shift: (3,). body_rotation, body_shift: the same for the body.
        out: (V, 3) float32, written.
    """
    matrix = np.empty((3, 3), np.float64)
    last = -1.0
    for i in range(vertices.shape[0]):
        m = float(follow[i])
        if m != last:
            rotation_matrix(
                m * head_rotation[0] + (1 - m) * body_rotation[0],
                m * head_rotation[1] + (1 - m) * body_rotation[1],
                m * head_rotation[2] + (1 - m) * body_rotation[2],
                matrix,
            )
            last = m
        x, y, z = vertices[i, 0] - pivot[0], vertices[i, 1] - pivot[1], vertices[i, 2] - pivot[2]
        for k in range(3):
            shift = m * head_shift[k] + (1 - m) * body_shift[k]
            out[i, k] = matrix[k, 0] * x + matrix[k, 1] * y + matrix[k, 2] * z + pivot[k] + shift


@njit(cache=True)
def project(
    vertices: Array, center: Array, distance: float, focal: float, half: float, xy: Array, nearness: Array
) -> None:
    """Pinhole projection; the camera stands ``distance`` in front of ``center`` and looks down -z.

    ``focal`` and ``half`` (half the image's side) are in the same unit as the (V, 2) ``xy`` that is written.
    """
    for i in range(vertices.shape[0]):
        depth = distance - (vertices[i, 2] - center[2])
        near = 1.0 / depth if depth > 1e-3 else 0.0
        nearness[i] = near
        xy[i, 0] = half + focal * (vertices[i, 0] - center[0]) * near
        xy[i, 1] = half - focal * (vertices[i, 1] - center[1]) * near
