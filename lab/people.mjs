// People's recorded movements as rows to be played again, from a folder in the form `gaitway train`
// reads. Only sources that may teach a shipped model are taken.
import { readFileSync } from 'node:fs';
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';

const SOURCES = ['sapimouse'];
const MARGIN_PX = 10;

/** Up to `most` people, one stretch of `seconds` each, in an order that depends on their names alone. */
export const people = (data, seconds, most) => {
  const [head, ...lines] = readFileSync(join(data, 'index.csv'), 'utf8').trim().split('\n');
  const columns = head.split(',');
  const rows = lines.map((line) => Object.fromEntries(line.split(',').map((value, i) => [columns[i], value])));
  const longest = new Map();
  for (const row of rows) {
    if (row.label !== 'human' || !SOURCES.includes(row.source) || Number(row.dur_s) < seconds) continue;
    const known = longest.get(row.user);
    if (!known || Number(row.n_moves) > Number(known.n_moves)) longest.set(row.user, row);
  }
  const hash = (text) => createHash('sha256').update(text).digest('hex');
  return [...longest.values()]
    .sort((a, b) => (hash(a.user) < hash(b.user) ? -1 : 1))
    .slice(0, most)
    .map((row) => ({ user: row.user, session: row.session, licence: row.licence, rows: (width, height) => stretch(data, row, seconds, width, height) }));
};

/** `[seconds, kind, x, y, wheel]`, made to fit the display. */
const stretch = (data, row, seconds, width, height) => {
  const lines = gunzipSync(readFileSync(join(data, row.file))).toString().trim().split('\n').slice(1);
  const all = lines.map((line) => line.split(',')).filter(([, type]) => ['move', 'down', 'up'].includes(type));
  const latest = Number(all.at(-1)[0]) - seconds * 1000;
  const from = (parseInt(createHash('sha256').update(row.session).digest('hex').slice(0, 8), 16) / 2 ** 32) * Math.max(0, latest);
  const cut = all.map(([ms, type, x, y]) => [Number(ms), type, Number(x), Number(y)]).filter(([ms]) => ms >= from && ms <= from + seconds * 1000);
  const [xs, ys] = [cut.map((r) => r[2]), cut.map((r) => r[3])];
  const [left, top] = [Math.min(...xs), Math.min(...ys)];
  const fit = Math.min(1, (width - 2 * MARGIN_PX) / (Math.max(...xs) - left + 1), (height - 2 * MARGIN_PX) / (Math.max(...ys) - top + 1));
  return cut.map(([ms, type, x, y]) => [ms / 1000, type, MARGIN_PX + (x - left) * fit, MARGIN_PX + (y - top) * fit, 0]);
};
