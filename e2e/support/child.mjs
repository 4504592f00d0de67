// Processes the suite starts, and the promise that none outlives it: a test that ends kills its own,
// the end of Node kills the rest, and if Node itself is killed the kernel does it.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createServer } from 'node:net';

/** Output kept of one process, characters: a failing test shows the last lines. */
const OUTPUT_MAX = 8 << 20;
const SETPRIV = '/usr/bin/setpriv';

const running = new Set();
process.on('exit', () => { for (const child of running) child.process.kill('SIGKILL'); });
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));

/** Starts a program and gathers what it writes. `env` is all it inherits besides PATH. */
export const start = (program, args, { env = {}, stdin = 'ignore' } = {}) => {
  const command = existsSync(SETPRIV) ? [SETPRIV, '--pdeathsig', 'KILL', '--', program] : [program];
  const spawned = spawn(command[0], [...command.slice(1), ...args], {
    env: { PATH: process.env.PATH, ...env },
    stdio: [stdin, 'pipe', 'pipe'],
  });
  const child = { process: spawned, out: '', err: '', ended: null };
  running.add(child);
  for (const [stream, into] of [['stdout', 'out'], ['stderr', 'err']]) {
    spawned[stream].setEncoding('utf8').on('data', (text) => {
      if (child[into].length < OUTPUT_MAX) child[into] += text;
    });
  }
  const end = new Promise((done) => {
    spawned.on('error', (error) => { child.ended = error.message; done(); });
    spawned.on('exit', (code, signal) => { child.ended = signal ?? `code ${code}`; done(); });
  }).finally(() => running.delete(child));
  child.stop = async (signal = 'SIGKILL') => {
    if (child.ended === null) spawned.kill(signal);
    await end;
  };
  return child;
};

/** A port that was free a moment ago. */
export const freePort = () => new Promise((done, failed) => {
  const server = createServer();
  server.on('error', failed);
  server.listen(0, '127.0.0.1', () => {
    const { port } = server.address();
    server.close(() => done(port));
  });
});
