// Scrolling of the document and of anything that scrolls inside it: the new position, not whose.
import { Column, type Emit, Kind, type Stop } from '../event';
import { listen } from '../listen';

export const observeScroll = (emit: Emit): Stop =>
  listen(window, 'scroll', (event) => {
    const target = event.target;
    const inner = target instanceof Element;
    emit(Kind.Scroll, event, {
      [Column.ScrollX]: inner ? target.scrollLeft : scrollX,
      [Column.ScrollY]: inner ? target.scrollTop : scrollY,
    });
  });
