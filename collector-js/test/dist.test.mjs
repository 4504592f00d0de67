// What is committed in dist/: small, reproducible, and free of what a page's policy would refuse.
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { bundle, DIST } from '../build.mjs';

const GZIP_BYTES_MAX = 5 * 1024;
const dist = await readFile(DIST);

test('dist is exactly what the sources give', async () => {
  assert.ok((await bundle()).equals(dist), 'run `npm run build` and commit dist/');
});

test('dist is one file, without a source map', async () => {
  assert.deepEqual(await readdir(new URL('../dist/', import.meta.url)), ['collector.js']);
  assert.doesNotMatch(dist.toString(), /sourceMappingURL/);
});

test('dist is at most 5 KB gzipped', (t) => {
  const bytes = gzipSync(dist, { level: 9 }).length;
  t.diagnostic(`${dist.length} bytes, ${bytes} gzipped`);
  assert.ok(bytes <= GZIP_BYTES_MAX, `${bytes} bytes`);
});

test('dist names nothing that evaluates, writes markup, stores, or patches', () => {
  assert.doesNotMatch(
    dist.toString(),
    /\beval\b|Function\(|innerHTML|outerHTML|insertAdjacent|document\.write|createElement|localStorage|sessionStorage|indexedDB|cookie|caches|pushState|replaceState|\.prototype\.\w+\s*=/,
  );
});

test('the lockfile names no registry', async () => {
  const lock = await readFile(new URL('../package-lock.json', import.meta.url), 'utf8');
  assert.doesNotMatch(lock, /"resolved"/);
  assert.match(lock, /"integrity"/);
});
