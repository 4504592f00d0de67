// Joins folders of recordings into one that names the files where they lie: index.csv by column name,
// a link for every session file.
//
// Usage: node join.mjs OUT FOLDER…
import { existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';

const [out, ...folders] = process.argv.slice(2);
if (!out || folders.length === 0) {
  console.error('usage: node join.mjs OUT FOLDER…');
  process.exit(2);
}

/** Fields of one line; quotes enclose a field that holds commas. */
const fields = (line) => [...line.matchAll(/(?:^|,)("(?:[^"]|"")*"|[^,]*)/g)].map(([, field]) => field);

const tables = folders.map((folder) => {
  const [head, ...lines] = readFileSync(join(folder, 'index.csv'), 'utf8').trim().split(/\r?\n/);
  return { folder: resolve(folder), head: fields(head), rows: lines.map(fields) };
});
const columns = [...new Set(tables.flatMap((table) => table.head))];
rmSync(out, { recursive: true, force: true });
const index = [columns.join(',')];
for (const { folder, head, rows } of tables) {
  const file = head.indexOf('file');
  for (const row of rows) {
    const link = join(out, row[file]);
    // Many rows may name one file.
    if (!existsSync(link)) {
      mkdirSync(dirname(link), { recursive: true });
      symlinkSync(join(folder, row[file]), link);
    }
    index.push(columns.map((column) => row[head.indexOf(column)] ?? '').join(','));
  }
}
writeFileSync(join(out, 'index.csv'), `${index.join('\n')}\n`);
