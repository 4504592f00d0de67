// What the gateway must know to read the numbers: size, resolution and kind of input, and whether
// the browser itself says that it is automated. Not a fingerprint: no fonts, canvas, plugins, names.

/** Values of `Environment`'s fields 1, 2, 3 … */
export const environment = (): number[] => [
  innerWidth,
  innerHeight,
  Math.round(devicePixelRatio * 100),
  +!!navigator.webdriver,
  +matchMedia('(pointer: coarse)').matches,
  +('getCoalescedEvents' in PointerEvent.prototype),
];
