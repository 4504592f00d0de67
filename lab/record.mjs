// Records bots, and people's movements played again, in a real Chromium through Gaitway itself: the
// collector it injects, the wire format it takes. Every session gets a display, a browser and a seed of
// its own; what both sides share is the recorder, which is the point.
//
// Usage: node record.mjs --out FOLDER [--people DATA] [--seconds 60] [--lanes 4] [--per-family 8]
//        [--persons 84] [--seed 1] [--only FAMILY,…]
import { chromium } from 'playwright-core';
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { cpus, loadavg, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { gzipSync } from 'node:zlib';
import { freePort, start } from '../e2e/support/child.mjs';
import { pause, until } from '../e2e/support/wait.mjs';
import { FAMILIES as DEVTOOLS, play } from './drivers/devtools.mjs';
import { people } from './people.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const PYTHON = process.env.LAB_PYTHON ?? join(HERE, '../target/lab/bin/python');
const GATEWAY = process.env.GAITWAY_BIN ?? join(HERE, '../target/debug/gaitway');
const PREFIX = '/_gaitway';
/** Displays people have; the browser fills them. */
const DISPLAYS = [[1280, 720], [1366, 768], [1440, 900], [1536, 864], [1920, 1080]];
const DEVICE_RATES_HZ = [125, 125, 250, 500, 1000];
const DESKTOP = ['pyautogui', 'pyclick', 'humancursor', 'pyhm'];
const WAYS = ['oxymouse_bezier', 'oxymouse_perlin', 'oxymouse_gaussian', 'wind_mouse', 'minimum_jerk', 'pyclick'];
/** A driver that has not ended this long after its time is ended. */
const OVERTIME_MS = 20_000;
/** A session with fewer events failed; it is told and left out. */
const EVENTS_MIN = 100;

const { values: options } = parseArgs({
  options: {
    out: { type: 'string' },
    people: { type: 'string' },
    seconds: { type: 'string', default: '60' },
    lanes: { type: 'string', default: '4' },
    'per-family': { type: 'string', default: '8' },
    persons: { type: 'string', default: '84' },
    seed: { type: 'string', default: '1' },
    only: { type: 'string' },
  },
});
if (!options.out) {
  console.error('usage: node record.mjs --out FOLDER [--people DATA] …; FOLDER gets index.csv, manifest.json and sessions');
  process.exit(2);
}
const [seconds, lanes, perFamily, persons, seed] = ['seconds', 'lanes', 'per-family', 'persons', 'seed'].map((name) => Number(options[name]));

/** A seeded stream of numbers below 1, named so that streams do not depend on each other. */
const chanceOf = (name) => {
  let state = createHash('sha256').update(`${seed} ${name}`).digest().readUInt32LE(0);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
};
const pick = (chance, list) => list[Math.floor(chance() * list.length)];

/** What is to be recorded, in an order that mixes people and bots, so that both meet the same load. */
const plan = () => {
  const jobs = [];
  const add = (name, count, of) => {
    for (let i = 0; i < count; i++) jobs.push({ name: `${name}_${i}`, at: (i + 0.5) / count, ...of(i) });
  };
  for (const family of DESKTOP) add(`x11_${family}`, perFamily, () => ({ family, by: 'desktop' }));
  for (const family of WAYS) {
    add(`x11_${family}_ways`, perFamily / 2, () => ({ family, by: 'device' }));
    add(`cdp_${family}_ways`, perFamily / 2, () => ({ family, by: 'devtools' }));
  }
  for (const family of Object.keys(DEVTOOLS)) add(`cdp_${family}`, perFamily, () => ({ family, by: 'script' }));
  add('selenium', perFamily, () => ({ family: 'selenium', by: 'webdriver' }));
  if (options.people) {
    const found = people(options.people, seconds, persons);
    add('person', found.length, (i) => ({ person: found[i], by: i % 3 === 2 ? 'devtools' : 'device' }));
  }
  const only = options.only?.split(',');
  return jobs
    .filter((job) => !only || only.includes(job.family ?? 'people'))
    .sort((a, b) => a.at - b.at || (a.name < b.name ? -1 : 1));
};

/** The app behind Gaitway: one page with things to point at. */
const page = () => {
  const chance = chanceOf('page');
  const buttons = Array.from({ length: 40 }, (_, i) =>
    `<button style="position:absolute;left:${(chance() * 92).toFixed(1)}%;top:${(3 + chance() * 92).toFixed(1)}vh">Item ${i}</button>`);
  return `<!doctype html><html><head><title>Lab</title></head><body style="margin:0;height:300vh">${buttons.join('')}</body></html>`;
};
const app = createServer((_, response) => response.writeHead(200, { 'content-type': 'text/html' }).end(page()));

const folder = mkdtempSync(join(tmpdir(), 'gaitway-lab-'));
const displays = new Set();
process.on('exit', () => {
  for (const display of displays) display.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
});

const startGateway = async () => {
  await new Promise((done) => app.listen(0, '127.0.0.1', done));
  const policy = join(folder, 'policy.yaml');
  // Whoever is recorded is not to be interrupted.
  writeFileSync(policy, 'mode: shadow\nrules:\n  - name: note\n    when: request.count > 0\n    action: log\n    reason: "recorded"\n');
  const settings = join(folder, 'gaitway.yaml');
  writeFileSync(settings, `upstream: http://127.0.0.1:${app.address().port}\nlisten: 127.0.0.1:0\ndata: ${join(folder, 'data')}\npolicy: {file: ${policy}}\nops: {listen: "127.0.0.1:0"}\nlog: {format: json}\n`);
  const child = start(GATEWAY, ['run', '--config', settings]);
  const ready = await until('Gaitway is ready', () => {
    if (child.ended !== null) throw new Error(child.err);
    return child.err.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line)).find((line) => line.message === 'Gaitway is ready');
  });
  return `http://${ready.listen}`;
};

const startDisplay = async ([width, height]) => {
  const child = spawn('Xvfb', ['-displayfd', '1', '-screen', '0', `${width}x${height}x24`, '-nolisten', 'tcp', '-noreset'], { stdio: ['ignore', 'pipe', 'ignore'] });
  displays.add(child);
  child.on('exit', () => displays.delete(child));
  let out = '';
  child.stdout.on('data', (text) => { out += text; });
  const number = await until('the display is up', () => /^\d+\n/.test(out) && out.trim());
  return { name: `:${number}`, stop: () => child.kill('SIGTERM') };
};

const python = (display, file, task) => new Promise((done, failed) => {
  const child = spawn(PYTHON, [join(HERE, 'drivers', file), JSON.stringify(task)], {
    env: { PATH: process.env.PATH, HOME: folder, DISPLAY: display }, stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [out, err] = ['', ''];
  child.stdout.on('data', (text) => { out += text; });
  child.stderr.on('data', (text) => { err += text; });
  const clock = setTimeout(() => child.kill('SIGKILL'), (task.seconds + 20) * 1000 + OVERTIME_MS);
  child.on('error', failed);
  child.on('exit', (code, signal) => {
    clearTimeout(clock);
    if (code === 0) done(out);
    else failed(new Error(`${file} ended with ${signal ?? code}: ${err.trim().split('\n').slice(-1)}`));
  });
});

/** Drives one session to its end. */
const drive = async (job, session) => {
  const { display, tab, port, width, height, chance, number } = session;
  const task = { kind: job.family ?? 'person', seed: number, width, height, seconds, port, rate_hz: pick(chance, DEVICE_RATES_HZ) };
  const rows = job.person?.rows(width, height);
  switch (job.by) {
    case 'desktop': return python(display, 'x11.py', task);
    case 'webdriver': return python(display, 'webdriver.py', task);
    case 'device': {
      if (rows) {
        task.file = join(folder, `${job.name}.json.gz`);
        writeFileSync(task.file, gzipSync(JSON.stringify(rows)));
      }
      session.note.push(`device ${task.rate_hz} Hz`);
      return python(display, 'x11.py', task);
    }
    case 'devtools': return play(tab, rows ?? JSON.parse(await python(display, 'paths.py', task)), seconds);
    case 'script': return DEVTOOLS[job.family](tab, { ...task, chance, end: performance.now() + seconds * 1000, clicks: 0.2 + chance() * 0.8, rest: 150 + chance() * 450 });
    default: throw new Error(`nobody drives ${job.by}`);
  }
};

const varint = (value) => {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Buffer.from([...bytes, value]);
};

const record = async (job, origin) => {
  const chance = chanceOf(job.name);
  const size = pick(chance, DISPLAYS);
  const display = await startDisplay(size);
  const profile = join(folder, `profile-${job.name}`);
  const port = await freePort();
  const scale = pick(chance, [1, 1, 1, 1.25]);
  let context;
  try {
    context = await chromium.launchPersistentContext(profile, {
      executablePath: '/usr/bin/chromium', headless: false, viewport: null,
      env: { PATH: process.env.PATH, HOME: folder, DISPLAY: display.name },
      ignoreDefaultArgs: ['--enable-automation'],
      args: ['--no-sandbox', '--disable-dev-shm-usage', '--kiosk', '--window-position=0,0', `--window-size=${size}`, '--disable-gpu',
        '--no-first-run', '--disable-sync', '--disable-background-networking', '--disable-component-update',
        `--force-device-scale-factor=${scale}`, `--remote-debugging-port=${port}`],
    });
    const tab = context.pages()[0] ?? await context.newPage();
    const frames = [];
    tab.on('websocket', (socket) => {
      if (!new URL(socket.url()).pathname.startsWith(`${PREFIX}/t`)) return;
      socket.on('framesent', ({ payload }) => frames.push(Buffer.from(payload)));
    });
    await tab.goto(origin);
    await until('the collector is connected', () => tab.evaluate(() => document.readyState === 'complete'));
    await pause(1200);
    const [width, height] = await tab.evaluate(() => [innerWidth, innerHeight]);
    // Device pixels for the display, CSS px for what goes through the browser's own door.
    const device = job.by === 'desktop' || job.by === 'device';
    const note = [`${size.join('x')} at ${scale}`];
    const session = { display: display.name, tab, port, chance, note, number: Math.floor(chance() * 2 ** 31), width: device ? size[0] : width, height: device ? size[1] : height };
    const load = loadavg()[0];
    await drive(job, session);
    // The last batch leaves within two seconds.
    await pause(2600);
    return { frames, note: note.join(', '), load, number: session.number };
  } finally {
    await context?.close().catch(() => {});
    display.stop();
    rmSync(profile, { recursive: true, force: true });
  }
};

const HEADER = 'session,file,source,user,label,bot_family,licence,n_events,n_moves,dur_s,note,device';
const out = resolve(options.out);
mkdirSync(join(out, 'lab'), { recursive: true });
const index = join(out, 'index.csv');
if (!existsSync(index)) writeFileSync(index, `${HEADER}\n`);
const done = new Set(readFileSync(index, 'utf8').split('\n').map((line) => line.split(',')[0]));

const version = (program, ...args) => {
  try { return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim().split('\n')[0]; } catch { return 'unknown'; }
};
const jobs = plan().filter((job) => !done.has(`lab/${job.name}`));
const manifest = {
  seed, seconds, lanes,
  versions: {
    gaitway: version(GATEWAY, '--version'), chromium: version('/usr/bin/chromium', '--version'), node: process.version,
    packages: { ...JSON.parse(readFileSync(join(HERE, 'package.json'), 'utf8')).devDependencies, ...Object.fromEntries(readFileSync(join(HERE, 'requirements.txt'), 'utf8').trim().split('\n').map((line) => line.split('=='))) },
  },
  processors: cpus().length,
  sessions: [],
};
const manifestFile = join(out, 'manifest.json');
if (existsSync(manifestFile)) manifest.sessions = JSON.parse(readFileSync(manifestFile, 'utf8')).sessions;

const origin = await startGateway();
console.error(`${jobs.length} sessions of ${seconds} s in ${lanes} lanes, through ${origin}`);
const lane = async () => {
  for (let job = jobs.shift(); job; job = jobs.shift()) {
    try {
      const got = await record(job, origin);
      const bytes = Buffer.concat([Buffer.from('GAITWAYT'), ...got.frames.flatMap((frame) => [varint(frame.length), frame])]);
      if (bytes.length < EVENTS_MIN * 4) throw new Error(`only ${bytes.length} bytes of telemetry`);
      const file = `lab/${job.name}.gwt.gz`;
      writeFileSync(join(out, file), gzipSync(bytes));
      const who = job.person ? [job.person.user, 'human', ''] : [`bot_${job.family}`, 'bot', job.family];
      const licence = job.person ? job.person.licence : "the project's own recordings";
      appendFileSync(index, `${[`lab/${job.name}`, file, 'lab', ...who, licence, '', '', seconds, `"${got.note}"`, job.by].join(',')}\n`);
      manifest.sessions.push({ session: job.name, seed: got.number, load: Number(got.load.toFixed(2)), replayed: job.person?.session });
      writeFileSync(manifestFile, `${JSON.stringify(manifest, null, 1)}\n`);
      console.error(`${job.name}: ${statSync(join(out, file)).size} bytes, load ${got.load.toFixed(1)}, ${jobs.length} to go`);
    } catch (error) {
      console.error(`${job.name}: left out: ${error.message.split('\n')[0]}`);
    }
  }
};
await Promise.all(Array.from({ length: lanes }, lane));
process.exit(0);
