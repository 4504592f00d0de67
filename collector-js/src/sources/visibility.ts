// The page comes into view, goes out of view, or is left; also in and out of the back/forward
// cache. Tells the transport as well, after the event itself is in the batch.
import { type Emit, Kind, type Stop } from '../event';
import { listen, stopAll } from '../listen';

/** `leaving`: the document goes, perhaps into the back/forward cache, where sockets must not. */
export type Turn = (hidden: boolean, leaving: boolean) => void;

export const observeVisibility = (emit: Emit, turn: Turn): Stop => {
  let wasHidden = document.hidden;
  const turnTo = (event: Event, hidden: boolean, leaving = false) => {
    const changed = hidden !== wasHidden;
    wasHidden = hidden;
    if (changed) emit(hidden ? Kind.Hidden : Kind.Visible, event);
    if (changed || leaving) turn(hidden, leaving);
  };
  return stopAll([
    listen(document, 'visibilitychange', (event) => turnTo(event, document.hidden)),
    // Some browsers leave a page without visibilitychange, the others send it after pagehide;
    // both give one HIDDEN and one last batch this way.
    listen(window, 'pagehide', (event) => turnTo(event, true, true)),
    listen(window, 'pageshow', (event) => turnTo(event, document.hidden)),
  ]);
};
