// The one way this script touches the page: listeners that cannot disturb it. Passive (cannot
// cancel) and capturing on the way down (a page's stopPropagation hides nothing). Every callback of
// ours, timers and sockets included, swallows its own errors.
import type { Stop } from './event';

export const quiet =
  <A extends unknown[]>(callback: (...values: A) => void) =>
  (...values: A): void => {
    try {
      callback(...values);
    } catch {
      // Losing an event is always better than an error in somebody else's page.
    }
  };

export const listen = <E extends Event>(
  target: EventTarget,
  type: string,
  handler: (event: E) => void,
): Stop => {
  const onEvent = quiet(handler) as EventListener;
  target.addEventListener(type, onEvent, { capture: true, passive: true });
  return () => target.removeEventListener(type, onEvent, true);
};

export const stopAll = (stops: Stop[]): Stop => () => stops.forEach((stop) => stop());
