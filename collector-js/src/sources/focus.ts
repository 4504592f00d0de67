// The window gains or loses the keyboard. Focus moving between fields is not recorded.
import { type Emit, Kind, type Stop } from '../event';
import { listen, stopAll } from '../listen';

export const observeFocus = (emit: Emit): Stop => {
  // Capturing on the window also sees the focus events of every field on their way down.
  const onWindow = (kind: Kind) => (event: Event) => event.target === window && emit(kind, event);
  return stopAll([
    listen(window, 'focus', onWindow(Kind.Focus)),
    listen(window, 'blur', onWindow(Kind.Blur)),
  ]);
};
