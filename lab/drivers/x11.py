"""Moves the pointer of an X display through XTEST, as a mouse would: people's recorded movements played
again at a device's rate, and the bots that work on whole desktops.

Knows nothing of browsers or of what is recorded. Arguments: one JSON object; see `main`.
"""
import gzip
import json
import random
import sys
import time

import paths


class Mouse:
    """The pointer of $DISPLAY."""

    def __init__(self):
        from Xlib import X, display
        from Xlib.ext import xtest

        self.display = display.Display()
        self.x, self.xtest = X, xtest

    def move(self, x, y):
        self.xtest.fake_input(self.display, self.x.MotionNotify, x=int(round(x)), y=int(round(y)))
        self.display.flush()

    def button(self, number, down):
        kind = self.x.ButtonPress if down else self.x.ButtonRelease
        self.xtest.fake_input(self.display, kind, number)
        self.display.flush()

    def click(self, dwell_s):
        self.button(1, True)
        time.sleep(dwell_s)
        self.button(1, False)


def sleep_until(moment):
    rest = moment - time.perf_counter()
    if rest > 0:
        time.sleep(rest)


def play(mouse, rows, rate_hz, seconds, chance):
    """Plays timed rows: between two moves the pointer glides, as the hand did, sampled at the device's rate."""
    if not rows:
        return
    began = time.perf_counter() + 0.3
    first = rows[0][0]
    period = 1.0 / rate_hz
    last = None
    for t, kind, x, y, wheel in rows:
        at = t - first
        if at > seconds:
            break
        if kind == "move":
            if last is not None and 0 < at - last[0] <= 0.1:
                t0, x0, y0 = last
                sample = t0 + period * chance.uniform(0.5, 1.0)
                while sample < at:
                    share = (sample - t0) / (at - t0)
                    sleep_until(began + sample)
                    mouse.move(x0 + (x - x0) * share, y0 + (y - y0) * share)
                    sample += period * chance.uniform(0.93, 1.07)
            sleep_until(began + at)
            mouse.move(x, y)
            last = (at, x, y)
        else:
            sleep_until(began + at)
            if kind == "wheel":
                mouse.button(5 if wheel > 0 else 4, True)
                mouse.button(5 if wheel > 0 else 4, False)
            else:
                mouse.button(1, kind == "down")


def desktop_bot(kind, task):
    """The bots of whole desktops, each by its own package: `go(x, y)` and `click()`."""
    import pyautogui

    pyautogui.FAILSAFE = False
    chance = task["chance"]
    if kind == "pyautogui":
        tweens = [pyautogui.linear, pyautogui.easeInOutQuad, pyautogui.easeOutQuad, pyautogui.easeInOutSine, pyautogui.easeInOutCubic]
        tween, pace = chance.choice(tweens), chance.uniform(0.25, 1.2)
        pyautogui.MINIMUM_SLEEP = chance.choice([0.005, 0.01, 0.02])
        return lambda x, y: pyautogui.moveTo(x, y, duration=pace * chance.uniform(0.7, 1.3), tween=tween), pyautogui.click
    if kind == "pyclick":
        from pyclick import HumanClicker

        clicker, pace = HumanClicker(), chance.uniform(0.5, 1.6)
        return lambda x, y: clicker.move((int(x), int(y)), pace * chance.uniform(0.7, 1.3)), clicker.click
    if kind == "humancursor":
        from humancursor import SystemCursor

        cursor = SystemCursor()
        return lambda x, y: cursor.move_to([int(x), int(y)], duration=chance.uniform(0.5, 1.6)), pyautogui.click
    if kind == "pyhm":
        from pyHM import mouse as pyhm

        pace = chance.uniform(0.6, 2.0)
        return lambda x, y: pyhm.move(int(x), int(y), pace), pyhm.click
    raise SystemExit(f"no desktop bot named {kind}")


def main():
    task = json.loads(sys.argv[1])
    chance = task["chance"] = random.Random(task["seed"])
    random.seed(task["seed"])
    try:
        import numpy

        numpy.random.seed(task["seed"] % 2**32)
    except ImportError:
        pass
    width, height, seconds = task["width"], task["height"], task["seconds"]
    kind = task["kind"]
    mouse = Mouse()
    if kind == "person":
        rows = [tuple(row) for row in task_rows(task["file"])]
        play(mouse, rows, task["rate_hz"], seconds, chance)
        return
    if kind in paths.FAMILIES:
        rows = paths.session(kind, chance, width, height, seconds)
        play(mouse, rows, task["rate_hz"], seconds, chance)
        return
    go, click = desktop_bot(kind, task)
    end = time.perf_counter() + seconds
    clicks, rest = chance.uniform(0.3, 1.0), chance.uniform(0.15, 0.6)
    while time.perf_counter() < end:
        try:
            go(*paths.target(chance, width, height))
        except ValueError:
            # pyHM's spline has no way between some places; a person at the script would try another.
            continue
        if chance.random() < clicks:
            time.sleep(chance.uniform(0.02, 0.15))
            click()
        time.sleep(paths.pause(chance, rest))


def task_rows(file):
    with gzip.open(file, "rt") as lines:
        return json.load(lines)


if __name__ == "__main__":
    main()
