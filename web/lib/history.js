// Undo and redo over immutable values.

const LIMIT = 200;

export const startHistory = (value) => ({ past: [], present: value, future: [] });

// A new present. Steps that share a `merge` key, such as those of one drag or of one field's typing,
// are undone together.
export function record(history, value, merge = null) {
  if (value === history.present) return history;
  if (merge !== null && merge === history.merge) return { ...history, present: value, future: [] };
  return { past: [...history.past, history.present].slice(-LIMIT), present: value, future: [], merge };
}

export function undo(history) {
  if (!history.past.length) return history;
  const future = [history.present, ...history.future];
  return { past: history.past.slice(0, -1), present: history.past.at(-1), future };
}

export function redo(history) {
  if (!history.future.length) return history;
  const past = [...history.past, history.present];
  return { past, present: history.future[0], future: history.future.slice(1) };
}
