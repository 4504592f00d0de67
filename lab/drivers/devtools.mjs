// Scripts that work through the browser's own debugging door: Playwright, Puppeteer, ghost-cursor, and
// timed rows (people's movements, other bots' ways) dispatched at their moments. They know a page and
// how to move; not what is recorded.
import puppeteer from 'puppeteer-core';
import { createCursor } from 'ghost-cursor';

const sleep = (ms) => new Promise((done) => setTimeout(done, Math.max(0, ms)));

/** Plays `[seconds, kind, x, y, wheel]` rows at their moments. */
export const play = async (page, rows, seconds) => {
  const began = performance.now() - rows[0][0] * 1000;
  for (const [at, kind, x, y, wheel] of rows) {
    if (at - rows[0][0] > seconds) break;
    await sleep(began + at * 1000 - performance.now());
    if (kind === 'move') await page.mouse.move(x, y);
    else if (kind === 'down') await page.mouse.down();
    else if (kind === 'up') await page.mouse.up();
    else await page.mouse.wheel(0, wheel);
  }
};

const target = ({ chance, width, height }) => [40 + chance() * (width - 80), 60 + chance() * (height - 100)];
const rest = ({ chance, rest }) => sleep(Math.min(3000, rest * Math.exp((chance() + chance() + chance() - 1.5) * 1.2)));
const clickNow = async (mouse, chance) => {
  await sleep(20 + chance() * 130);
  await mouse.down();
  await sleep(chance() * 120);
  await mouse.up();
};

/** Straight lines in even steps: what most scripts do that move at all. */
const straight = async (mouse, task, stepMs) => {
  const pixels = 6 + task.chance() * 16;
  let [x, y] = target(task);
  while (performance.now() < task.end) {
    const [toX, toY] = target(task);
    const steps = Math.max(4, Math.round(Math.hypot(toX - x, toY - y) / pixels));
    const began = performance.now();
    for (let i = 1; i <= steps; i++) {
      await sleep(began + i * stepMs - performance.now());
      await mouse.move(x + ((toX - x) * i) / steps, y + ((toY - y) * i) / steps);
    }
    [x, y] = [toX, toY];
    if (task.chance() < task.clicks) await clickNow(mouse, task.chance);
    await rest(task);
  }
};

/** Places to point at: nothing in between, or as many steps as the package makes of it. */
const steps = async (mouse, task, most) => {
  while (performance.now() < task.end) {
    const count = Math.round(1 + task.chance() * most);
    await mouse.move(...target(task), { steps: count });
    if (task.chance() < task.clicks) await clickNow(mouse, task.chance);
    await rest(task);
  }
};

const withPuppeteer = async (port, run) => {
  const browser = await puppeteer.connect({ browserURL: `http://127.0.0.1:${port}`, defaultViewport: null });
  const pages = await browser.pages();
  try {
    await run(pages.find((page) => page.url().startsWith('http')) ?? pages[0]);
  } finally {
    await browser.disconnect();
  }
};

export const FAMILIES = {
  playwright_linear: (page, task) => straight(page.mouse, task, 8 + task.chance() * 16),
  playwright_steps: (page, task) => steps(page.mouse, task, 80),
  puppeteer_linear: (page, task) => withPuppeteer(task.port, (own) => straight(own.mouse, task, 8 + task.chance() * 16)),
  ghost_cursor: (page, task) => withPuppeteer(task.port, async (own) => {
    const cursor = createCursor(own, { x: 100, y: 100 }, false);
    const moveSpeed = 4 + task.chance() * 40;
    while (performance.now() < task.end) {
      const [x, y] = target(task);
      await cursor.moveTo({ x, y }, { moveSpeed, moveDelay: 0 });
      if (task.chance() < task.clicks) await cursor.click();
      await rest(task);
    }
  }),
};
