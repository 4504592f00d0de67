// Keys going down and up: when, and of which class. Which key it was is forgotten on the same
// line that classifies it. Nothing at all is recorded of fields that hold secrets.
import { Column, type Emit, Kind, type Stop } from '../event';
import { listen, stopAll } from '../listen';

const enum KeyClass {
  Unknown = 0,
  Letter = 1,
  Digit = 2,
  Punctuation = 3,
  Space = 4,
  Enter = 5,
  Delete = 6,
  Tab = 7,
  Navigation = 8,
  Modifier = 9,
  Function = 10,
}

const NAMED: [RegExp, KeyClass][] = [
  [/^ $/, KeyClass.Space],
  [/^\p{L}$/u, KeyClass.Letter],
  [/^\p{N}$/u, KeyClass.Digit],
  [/^.$/u, KeyClass.Punctuation],
  [/^Enter$/, KeyClass.Enter],
  [/^(Backspace|Delete)$/, KeyClass.Delete],
  [/^Tab$/, KeyClass.Tab],
  [/^(Arrow|Page|Home$|End$)/, KeyClass.Navigation],
  [/^(Shift|Control|Alt|Meta|CapsLock|NumLock|Fn)/, KeyClass.Modifier],
  [/^(Unidentified|Process|Dead)$/, KeyClass.Unknown], // input methods, screen keyboards
  [/./, KeyClass.Function],
];

/** Says "secret" in a field's autocomplete, name or id. A false hit costs a little evidence only. */
const SECRET = /\bcc-|one-time-code|passw|passphrase|pwd|\bpin\b|\botp\b|card|cvv|cvc|iban/i;

/** Elements that have the focus themselves, whatever their tabindex; they cannot host a shadow tree, or hold no field. */
const PLAIN = /^(body|html|input|textarea|select|button|a)$/;

export const observeKey = (emit: Emit): Stop => {
  // Fields that were password fields once; "show password" turns them into text.
  const unmasked = new WeakSet<Node>();
  const typeChanges = new MutationObserver((changes) =>
    changes.forEach((change) => {
      if (/password/i.test(change.oldValue!)) unmasked.add(change.target);
    }),
  );
  typeChanges.observe(document, {
    subtree: true,
    attributeFilter: ['type'],
    attributeOldValue: true,
  });
  // Keys that went down unrecorded and are still down. Their release may happen elsewhere, as when
  // a one-time code moves on by itself, and is not recorded there either.
  let unrecorded = 0;

  const isSecret = (event: Event): boolean => {
    const path = event.composedPath();
    const field = path[0];
    if (!(field instanceof HTMLElement)) return false;
    const { type, name, id, tabIndex, localName } = field as HTMLInputElement;
    return (
      type === 'password' ||
      unmasked.has(field) ||
      SECRET.test([field.getAttribute('autocomplete'), name, id].join(' ')) ||
      // A host of a closed shadow tree: what has the focus inside cannot be seen, so assume the worst.
      (localName.includes('-') && !field.shadowRoot) ||
      (tabIndex < 0 && !field.isContentEditable && !PLAIN.test(localName)) ||
      path.some((node) => node instanceof Element && node.hasAttribute('data-gaitway-ignore'))
    );
  };

  const onKey = (event: KeyboardEvent) => {
    const key = event.key;
    if (typeof key !== 'string') return; // autofill sends key events that are none
    const down = event.type === 'keydown';
    if (isSecret(event)) {
      unrecorded = down ? unrecorded + +!event.repeat : Math.max(0, unrecorded - 1);
    } else if (!down && unrecorded) {
      unrecorded--;
    } else {
      const keyClass = NAMED.find(([pattern]) => pattern.test(key));
      emit(down ? Kind.KeyDown : Kind.KeyUp, event, {
        [Column.KeyClass]: (keyClass ? keyClass[1] : KeyClass.Unknown) | (+event.repeat << 4),
      });
    }
  };

  return stopAll([
    () => typeChanges.disconnect(),
    listen(window, 'keydown', onKey),
    listen(window, 'keyup', onKey),
    // Keys released in another window are never heard of.
    listen(window, 'blur', (event) => {
      if (event.target === window) unrecorded = 0;
    }),
  ]);
};
