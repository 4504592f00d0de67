// Bundles src/ into the one file the gateway serves. Owns the build settings; a test builds again
// with the same function and compares bytes, so what is committed is what the sources say.
import { writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

export const DIST = fileURLToPath(new URL('dist/collector.js', import.meta.url));

export const bundle = async (entry = 'src/main.ts', options = {}) => {
  const result = await build({
    absWorkingDir: fileURLToPath(new URL('.', import.meta.url)),
    entryPoints: [entry],
    bundle: true,
    write: false,
    format: 'iife',
    target: 'es2019',
    charset: 'ascii',
    minify: true,
    mangleProps: /^_[a-z]/, // names of ours; nothing of the browser's begins like that
    legalComments: 'none',
    banner: { js: '/* Gaitway collector, Apache-2.0 */' },
    ...options,
  });
  return Buffer.from(result.outputFiles[0].contents);
};

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await writeFile(DIST, await bundle());
}
