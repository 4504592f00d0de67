"""Ways from one place to another as bots draw them: by package (oxymouse, pyclick's curve) or by a known
recipe (wind mouse, minimum jerk). Pure: seeded chance in, timed places out.

A session is a list of (seconds, kind, x, y, wheel) with kind move, down or up.
"""
import json
import math
import random
import sys


def target(chance, width, height):
    """A place worth going to."""
    return chance.uniform(40, width - 40), chance.uniform(60, height - 40)


def pause(chance, typical_s):
    return min(3.0, typical_s * math.exp(chance.gauss(0, 0.6)))


def oxymouse(algorithm):
    def way(chance, start, end, pace):
        from oxymouse import OxyMouse

        places = OxyMouse(algorithm).generate_coordinates(*map(int, (*start, *end)))
        step = pace / max(len(places), 1)
        return [((i + 1) * step, x, y) for i, (x, y) in enumerate(places)]

    return way


def pyclick_curve(chance, start, end, pace):
    from pyclick.humancurve import HumanCurve

    places = HumanCurve(tuple(map(int, start)), tuple(map(int, end))).points
    step = pace / max(len(places), 1)
    return [((i + 1) * step, x, y) for i, (x, y) in enumerate(places)]


def wind_mouse(chance, start, end, pace):
    """Wind and gravity: a pull towards the target and a random wind that dies down near it."""
    gravity, wind_most, step_most, near = 9.0, chance.uniform(2, 5), chance.uniform(8, 18), 12.0
    (x, y), vx, vy, wx, wy, out = start, 0.0, 0.0, 0.0, 0.0, []
    tick = chance.uniform(0.006, 0.012) * max(0.6, pace)
    for i in range(4000):
        distance = math.hypot(end[0] - x, end[1] - y)
        if distance < 1:
            break
        wind = min(wind_most, distance)
        if distance >= near:
            wx = wx / math.sqrt(3) + chance.uniform(-wind, wind) / math.sqrt(5)
            wy = wy / math.sqrt(3) + chance.uniform(-wind, wind) / math.sqrt(5)
        else:
            wx, wy = wx / math.sqrt(3), wy / math.sqrt(3)
            step_most = chance.uniform(3, 6) if step_most < 3 else step_most / math.sqrt(5)
        vx += wx + gravity * (end[0] - x) / distance
        vy += wy + gravity * (end[1] - y) / distance
        speed = math.hypot(vx, vy)
        if speed > step_most:
            clip = step_most / 2 + chance.random() * step_most / 2
            vx, vy = vx / speed * clip, vy / speed * clip
        x, y = x + vx, y + vy
        out.append(((i + 1) * tick, x, y))
    return out


def minimum_jerk(chance, start, end, pace):
    """The smoothest reach there is, bent a little and shaken a little."""
    n = max(6, int(pace / 0.008))
    length = math.hypot(end[0] - start[0], end[1] - start[1]) or 1.0
    bow = chance.gauss(0, 0.06) * length
    nx, ny = -(end[1] - start[1]) / length, (end[0] - start[0]) / length
    shake, out = chance.uniform(0, 0.6), []
    for i in range(1, n + 1):
        t = i / n
        share = 10 * t**3 - 15 * t**4 + 6 * t**5
        side = bow * math.sin(math.pi * share)
        out.append((
            t * pace,
            start[0] + (end[0] - start[0]) * share + nx * side + chance.gauss(0, shake),
            start[1] + (end[1] - start[1]) * share + ny * side + chance.gauss(0, shake),
        ))
    return out


FAMILIES = {
    "oxymouse_bezier": oxymouse("bezier"),
    "oxymouse_perlin": oxymouse("perlin"),
    "oxymouse_gaussian": oxymouse("gaussian"),
    "pyclick": pyclick_curve,
    "wind_mouse": wind_mouse,
    "minimum_jerk": minimum_jerk,
}


def session(family, chance, width, height, seconds):
    way, rows, now = FAMILIES[family], [], 0.0
    place = target(chance, width, height)
    typical, rest = chance.uniform(0.45, 1.3), chance.uniform(0.15, 0.6)
    clicks = chance.uniform(0.2, 1.0)
    while now < seconds:
        end = target(chance, width, height)
        for t, x, y in way(chance, place, end, typical * chance.uniform(0.7, 1.4)):
            place = (min(max(float(x), 1.0), width - 2.0), min(max(float(y), 1.0), height - 2.0))
            rows.append((now + t, "move", *place, 0))
        now = rows[-1][0] if rows else now
        if chance.random() < clicks:
            now += chance.uniform(0.02, 0.15)
            rows.append((now, "down", *place, 0))
            now += chance.uniform(0.01, 0.12)
            rows.append((now, "up", *place, 0))
        now += pause(chance, rest)
    return rows


if __name__ == "__main__":
    # For drivers in other languages: prints one session as JSON.
    asked = json.loads(sys.argv[1])
    random.seed(asked["seed"])
    try:
        import numpy

        numpy.random.seed(asked["seed"] % 2**32)
    except ImportError:
        pass
    print(json.dumps(session(asked["kind"], random.Random(asked["seed"]), asked["width"], asked["height"], asked["seconds"])))
