// The vocabulary shared by sources and batch: what may be said about a page, and nothing else.
// Numbers are those of telemetry.proto. Must not know: the DOM beyond `Event`, or how bytes travel.

export type Stop = () => void;

export const enum Kind {
  PointerMove = 0,
  PointerDown = 1,
  PointerUp = 2,
  Click = 3,
  Wheel = 4,
  Scroll = 5,
  KeyDown = 6,
  KeyUp = 7,
  Focus = 8,
  Blur = 9,
  Visible = 10,
  Hidden = 11,
  Navigate = 12,
  PointerCancel = 13,
}

/** Added to a kind by the sources that know the pointer. */
export const enum Pointer {
  Mouse = 0 << 5,
  Touch = 1 << 5,
  Pen = 2 << 5,
  Other = 3 << 5,
}

/** Added to the kind of an event that a script made, `isTrusted` being false. */
export const UNTRUSTED = 1 << 4;

/** Field numbers of the columns; `x` and `y` in quarter CSS px, wheel and scroll in px. */
export const enum Column {
  Kind = 10,
  At = 11,
  X = 12,
  Y = 13,
  MovementX = 14,
  MovementY = 15,
  Coalesced = 16,
  Button = 17,
  WheelX = 18,
  WheelY = 19,
  ScrollX = 20,
  ScrollY = 21,
  KeyClass = 22,
}

export type Fields = { [column in Column]?: number };

/** `kind` is a `Kind`, or'ed with a `Pointer`; the event gives its time and whether it is trusted. */
export type Emit = (kind: number, event: Event, fields?: Fields) => void;
