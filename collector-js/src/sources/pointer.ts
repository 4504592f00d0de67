// Mouse, touch and pen: moves, presses, releases, cancellations.
// Keeps at most about 60 moves a second of each pointer, as they came: a kept move is never
// averaged, re-timed or snapped, since evenness itself is evidence.
import { Column, type Emit, Kind, Pointer, type Stop } from '../event';
import { listen, stopAll } from '../listen';

/** A 60 Hz screen delivers a move each 16.7 ms, give or take; 13 keeps all of those and half of 120 Hz. */
const MOVE_INTERVAL_MIN_MS = 13;
/** Ten fingers and a mouse; more ids than that are somebody playing. */
const POINTERS_MAX = 16;

export const pointerBits = (event: MouseEvent): Pointer => {
  const type = (event as PointerEvent).pointerType;
  if (type === 'mouse') return Pointer.Mouse;
  if (type === 'touch') return Pointer.Touch;
  return type === 'pen' ? Pointer.Pen : Pointer.Other;
};

export const position = (event: MouseEvent) => ({
  [Column.X]: event.clientX * 4,
  [Column.Y]: event.clientY * 4,
});

export const observePointer = (emit: Emit): Stop => {
  const keptAtMs = new Map<number, number>();

  const onMove = (event: PointerEvent) => {
    const id = event.pointerId;
    const last = keptAtMs.get(id);
    const since = event.timeStamp - last!; // NaN for the first move, which no comparison holds back
    if (since >= 0 && since < MOVE_INTERVAL_MIN_MS) return;
    if (keptAtMs.size >= POINTERS_MAX) keptAtMs.clear();
    keptAtMs.set(id, event.timeStamp);
    emit(Kind.PointerMove | pointerBits(event), event, {
      ...position(event),
      [Column.MovementX]: event.movementX,
      [Column.MovementY]: event.movementY,
      // Absent in older browsers and on plain http.
      [Column.Coalesced]: event.getCoalescedEvents ? event.getCoalescedEvents().length : 0,
    });
  };
  const onPress = (kind: Kind) => (event: PointerEvent) =>
    emit(kind | pointerBits(event), event, { ...position(event), [Column.Button]: event.button });
  const onCancel = (event: PointerEvent) => emit(Kind.PointerCancel | pointerBits(event), event);

  return stopAll([
    listen(window, 'pointermove', onMove),
    listen(window, 'pointerdown', onPress(Kind.PointerDown)),
    listen(window, 'pointerup', onPress(Kind.PointerUp)),
    listen(window, 'pointercancel', onCancel),
  ]);
};
