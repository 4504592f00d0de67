// Clicks, however they came about: pointer, keyboard or script. What was clicked is not kept.
import { Column, type Emit, Kind, type Stop } from '../event';
import { listen } from '../listen';
import { pointerBits, position } from './pointer';

export const observeClick = (emit: Emit): Stop =>
  listen(window, 'click', (event: MouseEvent) =>
    // Browsers whose click is a plain MouseEvent, and clicks by keyboard, count as pointer OTHER.
    emit(Kind.Click | pointerBits(event), event, {
      ...position(event),
      [Column.Button]: event.button,
    }),
  );
