// Navigation within the document, by history or hash: that it happened, never where to.
// Nothing is patched: browsers without the Navigation API tell us only of back, forward and hash.
import { type Emit, Kind, type Stop } from '../event';
import { listen, stopAll } from '../listen';

export const observeNavigation = (emit: Emit): Stop => {
  let address = location.href; // compared, not sent: routers also replace an entry with itself
  const onChange = (event: Event) => {
    if (address !== location.href) {
      address = location.href;
      emit(Kind.Navigate, event);
    }
  };
  const api = (window as { navigation?: EventTarget }).navigation;
  return api instanceof EventTarget
    ? listen(api, 'currententrychange', onChange)
    : stopAll([listen(window, 'popstate', onChange), listen(window, 'hashchange', onChange)]);
};
