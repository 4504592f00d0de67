// Hands: a person's, with strokes, corrections, tremor, reading and typing, and a script's, straight and
// even. Both reach Chromium as input from outside, the way a mouse does. Knows nothing of scores.
import { pause } from './wait.mjs';

/** A seeded generator (mulberry32): a story that fails can be played again. */
export const chance = (seed) => {
  let state = seed >>> 0;
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const between = (low, high) => low + (high - low) * random();
  const gauss = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const around = (median, spread) => median * Math.exp(spread * gauss());
  return { random, between, gauss, around, pick: (list) => list[Math.floor(random() * list.length)], whole: (low, high) => Math.floor(between(low, high + 1)) };
};

/** A mouse reports this often; Chromium gathers the reports of a frame, as it does of any mouse. */
const SAMPLE_MS = 8;
const bell = (t) => t ** 3 * (10 - 15 * t + 6 * t * t);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** The mouse and keyboard of one tab. */
class Input {
  static async of(page) {
    const input = new Input();
    input.page = page;
    input.cdp = await page.context().newCDPSession(page);
    input.x = 400;
    input.y = 300;
    return input;
  }

  /** Sends an event without waiting for the page to handle it, as hardware does. A page that goes away meanwhile is no mistake. */
  send(type, more = {}) {
    const event = { type, x: this.x, y: this.y, pointerType: 'mouse', ...more };
    this.cdp.send('Input.dispatchMouseEvent', event).catch(() => {});
  }

  move(x, y) {
    [this.x, this.y] = [x, y];
    this.send('mouseMoved', { buttons: 0 });
  }

  async click(dwellMs) {
    this.send('mousePressed', { button: 'left', buttons: 1, clickCount: 1 });
    await pause(dwellMs);
    this.send('mouseReleased', { button: 'left', buttons: 0, clickCount: 1 });
  }

  wheel(deltaY) {
    this.send('mouseWheel', { deltaX: 0, deltaY });
  }
}

/** A person with habits of their own. Never hurries, never repeats a movement. */
export class Person {
  static async at(page, seed) {
    const person = new Person();
    person.input = await Input.of(page);
    person.page = page;
    const c = chance(seed);
    person.chance = c;
    person.habits = {
      fitts: [c.between(80, 200), c.between(80, 180)], skew: c.between(0.7, 0.92), bow: c.gauss() * 0.05,
      scatter: c.between(0.05, 0.11), heading: c.between(0.06, 0.16), pace: c.between(0.1, 0.25),
      tremor: c.between(0.2, 0.6), tremorHz: c.between(8, 12), dwell: c.between(65, 125),
      key: c.between(120, 230), keyDwell: c.between(65, 115), pause: c.between(200, 550),
    };
    return person;
  }

  /** Goes to a place in the window and corrects until it is reached. */
  async pointAt(x, y, radius = 12) {
    const { chance: c, habits, input } = this;
    for (let attempt = 0; attempt < 4; attempt++) {
      const [dx, dy] = [x - input.x, y - input.y];
      const distance = Math.hypot(dx, dy);
      if (distance < radius) return;
      const reach = (attempt ? 1 : 0.96) + c.gauss() * habits.scatter;
      const wide = c.gauss() * habits.scatter * 0.6;
      const bits = Math.log2(distance / radius + 1);
      const duration = (habits.fitts[0] + habits.fitts[1] * bits) * (attempt ? 0.75 : 1) * c.around(1, 0.18);
      await this.stroke(dx * reach - dy * wide, dy * reach + dx * wide, clamp(duration, 100, 2200));
      if (attempt || c.random() < 0.35) await pause(c.around(70, 0.5));
    }
  }

  /** One ballistic movement with its own bow, noise and tremor (minimum jerk, early peak). */
  async stroke(dx, dy, durationMs) {
    const { chance: c, habits, input } = this;
    const length = Math.max(1, Math.hypot(dx, dy));
    const [ux, uy] = [dx / length, dy / length];
    const bow = (habits.bow + c.gauss() * 0.035) * length;
    const skew = clamp(habits.skew + c.gauss() * 0.06, 0.5, 1.1);
    const second = c.random() < 0.45 ? c.between(0.08, 0.3) : 0;
    const secondAt = c.between(0.35, 0.65);
    const decay = Math.exp(-SAMPLE_MS / 90);
    const kick = Math.sqrt(1 - decay * decay);
    const phase = c.between(0, 2 * Math.PI);
    let [x, y, heading, pace, alongBefore, acrossBefore] = [input.x, input.y, 0, 0, 0, 0];
    const began = performance.now();
    for (let elapsed = 0; elapsed < durationMs;) {
      await pause(SAMPLE_MS);
      // By the clock, not by the count: a busy machine makes samples rarer and not the hand slower.
      elapsed = performance.now() - began;
      const t = Math.min(1, elapsed / durationMs);
      const s = second
        ? (1 - second) * bell(Math.min(1, t / 0.8) ** skew) + second * bell(clamp((t - secondAt) / (1 - secondAt), 0, 1))
        : bell(t ** skew);
      const [along, across] = [s * length, bow * Math.sin(Math.PI * s ** 0.85)];
      heading = heading * decay + kick * habits.heading * c.gauss();
      pace = pace * decay + kick * habits.pace * c.gauss();
      const forward = (along - alongBefore) * Math.exp(pace);
      const side = across - acrossBefore + forward * heading;
      [alongBefore, acrossBefore] = [along, across];
      x += forward * ux - side * uy;
      y += forward * uy + side * ux;
      const shake = habits.tremor * Math.sin((2 * Math.PI * habits.tremorHz * elapsed) / 1000 + phase);
      // Screens have edges; a hand that runs into one stays there.
      input.move(clamp(x - shake * uy, 2, 1277), clamp(y + shake * ux, 2, 717));
    }
    [input.x, input.y] = [clamp(x, 2, 1277), clamp(y, 2, 717)];
  }

  async click() {
    await pause(this.chance.around(110, 0.5));
    await this.input.click(this.chance.around(this.habits.dwell, 0.22));
  }

  /** Points at something on the page and clicks it. False if it is not to be seen. */
  async clickOn(locator) {
    const box = await locator.boundingBox({ timeout: 2000 }).catch(() => null);
    if (!box || box.y < 0 || box.y + box.height > 720) return false;
    const c = this.chance;
    await this.pointAt(box.x + box.width * c.between(0.25, 0.75), box.y + box.height * c.between(0.3, 0.7), clamp(Math.min(box.width, box.height) / 3, 4, 20));
    await this.click();
    return true;
  }

  /** Looks about: some pointing at nothing in particular, some reading. */
  async wander() {
    const c = this.chance;
    for (let i = c.whole(1, 3); i > 0; i--) {
      if (c.random() < 0.7) await this.pointAt(c.between(80, 1200), c.between(90, 660), c.between(8, 24));
      else await this.stroke(c.gauss() * 130, c.gauss() * 90, c.between(200, 600));
      await this.rest();
    }
  }

  async read() {
    const c = this.chance;
    const down = c.random() < 0.7;
    for (let notch = 0, notches = c.whole(2, 6); notch < notches; notch++) {
      this.input.wheel(down ? 100 : -100);
      await pause(c.around(45 + 14 * notch, 0.35));
    }
    await pause(Math.min(2500, c.around(700, 0.5)));
    if (c.random() < 0.5) await this.stroke(c.gauss() * 14, c.gauss() * 10, 260);
  }

  /** Types with overlapping keys. */
  async type(text) {
    const c = this.chance;
    const releases = [];
    for (const character of text) {
      const key = character === ' ' ? 'Space' : character;
      await this.page.keyboard.down(key).catch(() => {});
      releases.push(pause(c.around(this.habits.keyDwell, 0.24)).then(() => this.page.keyboard.up(key)).catch(() => {}));
      await pause(Math.max(30, c.around(this.habits.key, 0.36)));
    }
    await Promise.all(releases);
  }

  rest() {
    return pause(Math.min(3000, this.chance.around(this.habits.pause, 0.8)));
  }
}

/** A script: straight lines in equal, evenly timed steps, each target clicked after the same moment. */
export class Script {
  constructor(page, { stepMs = 16, stepPx = 14, seed = 1 } = {}) {
    Object.assign(this, { page, stepMs, stepPx, x: 300, y: 300, chance: chance(seed) });
  }

  async goTo(x, y) {
    const steps = Math.max(4, Math.round(Math.hypot(x - this.x, y - this.y) / this.stepPx));
    const began = performance.now();
    for (let i = 1; i <= steps; i++) {
      await pause(began + i * this.stepMs - performance.now());
      await this.page.mouse.move(this.x + ((x - this.x) * i) / steps, this.y + ((y - this.y) * i) / steps);
    }
    [this.x, this.y] = [x, y];
  }

  /** Runs between random places until `stop` says so. Never follows a link: what happens to it comes from outside. */
  async run(stop) {
    while (!stop()) {
      await this.goTo(this.chance.whole(100, 1150), this.chance.whole(120, 640));
      await pause(100);
    }
  }
}
