// Reads frames by telemetry.proto itself, with protobufjs, so that the encoder is checked against
// the contract and not against a second implementation of ours.
import { fileURLToPath } from 'node:url';
import protobuf from 'protobufjs';

const root = await protobuf.load(fileURLToPath(new URL('../telemetry.proto', import.meta.url)));
const Batch = root.lookupType('gaitway.telemetry.v1.Batch');
const { EventKind, KeyClass, PointerType } = root.lookup('gaitway.telemetry.v1').nested;
export const kinds = EventKind.values;
export const keyClasses = KeyClass.values;
const name = (type, value) => {
  const found = Object.keys(type.values).find((key) => type.values[key] === value);
  if (found === undefined) throw new Error(`no ${type.name} ${value}`);
  return found;
};

const POINTER = ['POINTER_MOVE', 'POINTER_DOWN', 'POINTER_UP', 'CLICK'];
const COLUMNS = [
  // column, kinds that own it, delta
  ['x', POINTER, true],
  ['y', POINTER, true],
  ['movementX', ['POINTER_MOVE']],
  ['movementY', ['POINTER_MOVE']],
  ['coalesced', ['POINTER_MOVE']],
  ['button', ['POINTER_DOWN', 'POINTER_UP', 'CLICK']],
  ['wheelX', ['WHEEL']],
  ['wheelY', ['WHEEL']],
  ['scrollX', ['SCROLL'], true],
  ['scrollY', ['SCROLL'], true],
  ['keyClass', ['KEY_DOWN', 'KEY_UP']],
];

/** Decodes one frame into a batch with `events`, each a plain object; throws where columns disagree. */
export const decode = (frame) => {
  const batch = Batch.toObject(Batch.decode(frame), { longs: Number, arrays: true, defaults: true });
  if (batch.kind.length !== batch.atTicks.length) throw new Error('column atTicks');
  let ticks = 0;
  const events = batch.kind.map((kind, i) => ({
    kind: name(EventKind, kind & 15),
    trusted: !(kind & 16),
    pointer: name(PointerType, kind >> 5),
    atTicks: (ticks += batch.atTicks[i]),
  }));
  for (const [column, owners, delta] of COLUMNS) {
    const values = batch[column];
    let previous = 0;
    let i = 0;
    for (const event of events.filter((event) => owners.includes(event.kind))) {
      if (i >= values.length) throw new Error(`column ${column} is short`);
      event[column] = values[i++] + (delta ? previous : 0);
      previous = event[column];
    }
    if (i !== values.length) throw new Error(`column ${column} is long`);
  }
  for (const event of events) {
    if ('keyClass' in event) {
      event.repeat = event.keyClass >> 4;
      event.keyClass = name(KeyClass, event.keyClass & 15);
    }
  }
  return { ...batch, events };
};
