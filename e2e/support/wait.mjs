// Waiting for a condition with a deadline. The only place where a test looks at the time to decide
// whether something happened.

const POLL_MS = 40;

/** Resolves with the first truthy answer of `condition`; fails with `what` and the last answer or error. */
export const until = async (what, condition, { withinMs = 20_000 } = {}) => {
  const deadline = performance.now() + withinMs;
  let last;
  for (;;) {
    try {
      last = await condition();
      if (last) return last;
    } catch (error) {
      last = error;
    }
    if (performance.now() > deadline) {
      const seen = last instanceof Error ? last.stack : JSON.stringify(last);
      throw new Error(`not within ${withinMs / 1000} s: ${what} (last seen: ${seen})`);
    }
    await pause(POLL_MS);
  }
};

export const pause = (ms) => new Promise((done) => setTimeout(done, Math.max(0, ms)));
