// Wheel and touchpad turns, in px: a line counts 16, a page 400.
import { Column, type Emit, Kind, type Stop } from '../event';
import { listen } from '../listen';

const PX_PER_UNIT = [1, 16, 400]; // indexed by deltaMode

export const observeWheel = (emit: Emit): Stop =>
  listen(window, 'wheel', (event: WheelEvent) => {
    const px = PX_PER_UNIT[event.deltaMode]!;
    emit(Kind.Wheel, event, {
      [Column.WheelX]: event.deltaX * px,
      [Column.WheelY]: event.deltaY * px,
    });
  });
