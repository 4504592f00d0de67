// Collects events into columns and encodes them as one `Batch` of telemetry.proto, by hand.
// Owns sequence numbers and the count of dropped events. Must not know: sources, sockets.
import { Column, type Fields } from './event';

/** Ten busy seconds. The costliest event takes 34 bytes, so a full batch stays below 24 KB. */
export const EVENTS_MAX = 500;
/** Bound of a column's values, so that differences of two fit the wire's 32 bits. */
const VALUE_MAX = 2 ** 30 - 1;
const TICKS_PER_MS = 10;

const isDelta = (column: number) =>
  (column >= Column.At && column <= Column.Y) || column === Column.ScrollX || column === Column.ScrollY;
const isUnsigned = (column: number) =>
  column === Column.Kind ||
  column === Column.Coalesced ||
  column === Column.Button ||
  column === Column.KeyClass;

export interface Batch {
  /** Events waiting. */
  _size(): number;
  _add(kind: number, atMs: number, fields?: Fields): void;
  /** The next frame, or nothing when there is nothing to say. */
  _take(nowMs: number): Uint8Array | undefined;
  /** Has the next frame describe the environment again, for a server that may not know it. */
  _introduce(): void;
}

/** `environment` gives the values of `Environment`'s fields 1, 2, 3 …, asked once a batch at most. */
export const createBatch = (environment: () => number[]): Batch => {
  let sequence = 0;
  let dropped = 0;
  let introduced = '';
  let columns: number[][] = [];

  const add = (column: number, value: number) => (columns[column] = columns[column] || []).push(value);

  return {
    _size: () => (columns[Column.Kind] || []).length,

    _add(kind, atMs, fields = {}) {
      if (this._size() >= EVENTS_MAX) {
        dropped++;
        return;
      }
      add(Column.Kind, kind);
      add(Column.At, Math.round(atMs * TICKS_PER_MS));
      Object.keys(fields).forEach((key) => {
        const column = +key as Column;
        const value = Math.round(fields[column]!) || 0;
        const least = isUnsigned(column) ? 0 : -VALUE_MAX;
        add(column, Math.min(VALUE_MAX, Math.max(least, value)));
      });
    },

    _take(nowMs) {
      if (!this._size()) return undefined;
      const bytes: number[] = [];
      const values = environment();
      putNumber(bytes, 1, 1);
      putNumber(bytes, 2, sequence++);
      putNumber(bytes, 3, Math.round(nowMs * TICKS_PER_MS));
      putNumber(bytes, 4, dropped);
      if (introduced !== (introduced = values.join())) {
        const inner: number[] = [];
        values.forEach((value, index) => putNumber(inner, index + 1, value));
        putBytes(bytes, 5, inner);
      }
      columns.forEach((values, column) => {
        const inner: number[] = [];
        let previous = 0;
        values.forEach((value) => {
          const wire = value - previous;
          if (isDelta(column)) previous = value;
          // Signed values zigzag; by arithmetic, since ticks outgrow 32 bits in five days.
          putVarint(inner, isUnsigned(column) ? wire : wire < 0 ? -2 * wire - 1 : 2 * wire);
        });
        putBytes(bytes, column, inner);
      });
      columns = [];
      dropped = 0;
      return new Uint8Array(bytes);
    },

    _introduce() {
      introduced = '';
    },
  };
};

const putVarint = (bytes: number[], value: number) => {
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  bytes.push(value);
};

const putNumber = (bytes: number[], field: number, value: number) => {
  if (!value) return; // proto3 leaves zeroes out
  bytes.push(field << 3);
  putVarint(bytes, value);
};

const putBytes = (bytes: number[], field: number, inner: number[]) => {
  putVarint(bytes, (field << 3) | 2);
  putVarint(bytes, inner.length);
  inner.forEach((byte) => bytes.push(byte));
};
