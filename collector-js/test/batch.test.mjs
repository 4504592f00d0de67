// The encoder alone, in Node: every column, the limits, and values nobody sane would send.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bundle } from '../build.mjs';
import { decode, keyClasses, kinds } from './decode.mjs';

// Names of ours shortened by the bundler are kept here, to be called by.
const source = await bundle('src/batch.ts', { format: 'esm', mangleProps: undefined });
const { createBatch, EVENTS_MAX } = await import(
  'data:text/javascript;base64,' + source.toString('base64')
);
const ENVIRONMENT = [1280, 720, 150, 1, 0, 1];
const fresh = (environment = () => ENVIRONMENT) => createBatch(environment);
const X = 12, Y = 13, MOVEMENT_X = 14, MOVEMENT_Y = 15, COALESCED = 16, BUTTON = 17;
const WHEEL_X = 18, WHEEL_Y = 19, SCROLL_X = 20, SCROLL_Y = 21, KEY_CLASS = 22;
const move = (x, y) => ({ [X]: x, [Y]: y, [MOVEMENT_X]: -3, [MOVEMENT_Y]: 4, [COALESCED]: 2 });

test('every column comes back as it went in, by the .proto', () => {
  const batch = fresh();
  batch._add(kinds.POINTER_MOVE, 10, move(400.4, 80));
  batch._add(kinds.POINTER_MOVE | 16, 26.73, move(396, 81.6));
  batch._add(kinds.POINTER_DOWN | (1 << 5), 30, { [X]: 396, [Y]: 82, [BUTTON]: 0 });
  batch._add(kinds.POINTER_UP | (2 << 5), 31, { [X]: 396, [Y]: 82, [BUTTON]: 2 });
  batch._add(kinds.CLICK | (3 << 5), 31, { [X]: -8, [Y]: 82, [BUTTON]: 1 });
  batch._add(kinds.WHEEL, 40, { [WHEEL_X]: -1.6, [WHEEL_Y]: 120 });
  batch._add(kinds.SCROLL, 41, { [SCROLL_X]: 0, [SCROLL_Y]: 100 });
  batch._add(kinds.SCROLL, 42, { [SCROLL_X]: 0, [SCROLL_Y]: 50 });
  batch._add(kinds.KEY_DOWN, 50, { [KEY_CLASS]: keyClasses.TAB | 16 });
  batch._add(kinds.FOCUS, 49.96);
  const decoded = decode(batch._take(51));

  assert.equal(decoded.version, 1);
  assert.equal(decoded.sequence, 0);
  assert.equal(decoded.sentAtTicks, 510);
  assert.equal(decoded.dropped, 0);
  assert.deepEqual(decoded.environment, {
    viewportWidth: 1280, viewportHeight: 720, pixelRatioPercent: 150,
    automation: true, coarsePointer: false, coalescedSupported: true,
  });
  const event = (kind, atTicks, rest, trusted = true, pointer = 'MOUSE') => ({ kind, trusted, pointer, atTicks, ...rest });
  assert.deepEqual(decoded.events, [
    event('POINTER_MOVE', 100, { x: 400, y: 80, movementX: -3, movementY: 4, coalesced: 2 }),
    event('POINTER_MOVE', 267, { x: 396, y: 82, movementX: -3, movementY: 4, coalesced: 2 }, false),
    event('POINTER_DOWN', 300, { x: 396, y: 82, button: 0 }, true, 'TOUCH'),
    event('POINTER_UP', 310, { x: 396, y: 82, button: 2 }, true, 'PEN'),
    event('CLICK', 310, { x: -8, y: 82, button: 1 }, true, 'OTHER'),
    event('WHEEL', 400, { wheelX: -2, wheelY: 120 }),
    event('SCROLL', 410, { scrollX: 0, scrollY: 100 }),
    event('SCROLL', 420, { scrollX: 0, scrollY: 50 }),
    event('KEY_DOWN', 500, { keyClass: 'TAB', repeat: 1 }),
    event('FOCUS', 500, {}),
  ]);
});

test('an empty batch is no frame and uses up no sequence number', () => {
  const batch = fresh();
  assert.equal(batch._take(1), undefined);
  batch._add(kinds.BLUR, 1);
  assert.equal(decode(batch._take(2)).sequence, 0);
  assert.equal(batch._take(3), undefined);
  batch._add(kinds.BLUR, 4);
  assert.equal(decode(batch._take(5)).sequence, 1);
});

test('the environment is in the first frame, after a change, and when introduced again', () => {
  let width = 800;
  const batch = fresh(() => [width, 600, 100, 0, 0, 1]);
  const next = () => {
    batch._add(kinds.FOCUS, 1);
    return decode(batch._take(1)).environment?.viewportWidth;
  };
  assert.equal(next(), 800);
  assert.equal(next(), undefined);
  width = 900;
  assert.equal(next(), 900);
  assert.equal(next(), undefined);
  batch._introduce();
  assert.equal(next(), 900);
});

test('a full batch keeps what it has and counts the rest as dropped, once', () => {
  const batch = fresh();
  for (let i = 0; i < EVENTS_MAX + 7; i++) batch._add(kinds.FOCUS, i);
  assert.equal(batch._size(), EVENTS_MAX);
  const full = decode(batch._take(1));
  assert.equal(full.events.length, EVENTS_MAX);
  assert.equal(full.events.at(-1).atTicks, (EVENTS_MAX - 1) * 10);
  assert.equal(full.dropped, 7);
  batch._add(kinds.FOCUS, 1);
  assert.equal(decode(batch._take(1)).dropped, 0);
});

test('absurd values are clamped, never break a frame, and stay below 24 KB', () => {
  const batch = fresh(() => [1e9, 1e9, 1e9, 1, 1, 1]);
  const aeonMs = 2 ** 45;
  for (let i = 0; i < EVENTS_MAX; i++) {
    const huge = i % 2 ? 1e308 : -1e308;
    batch._add(kinds.POINTER_MOVE | 16, i % 2 ? aeonMs : 0, {
      [X]: huge, [Y]: -huge, [MOVEMENT_X]: huge, [MOVEMENT_Y]: huge, [COALESCED]: 1e12,
    });
  }
  const frame = batch._take(aeonMs);
  assert.ok(frame.length < 24_000, `${frame.length} bytes`);
  const { events, sentAtTicks } = decode(frame);
  const most = 2 ** 30 - 1;
  assert.equal(sentAtTicks, aeonMs * 10);
  assert.deepEqual(
    [events[0].x, events[0].y, events[1].x, events[1].atTicks, events[2].atTicks, events[1].coalesced],
    [-most, most, most, aeonMs * 10, 0, most],
  );
  const odd = fresh();
  odd._add(kinds.POINTER_DOWN, 1, { [X]: NaN, [Y]: undefined, [BUTTON]: -1 });
  assert.deepEqual(
    decode(odd._take(1)).events.map(({ x, y, button }) => [x, y, button]),
    [[0, 0, 0]],
  );
});
