// Entries of a memory as the browser shows them: which, in what order, and what is said of each.

export const SHOWN = {
  all: () => true,
  unused: ({ uses }) => uses === 0,
  pinned: ({ pinned }) => pinned,
  missing: ({ missing }) => missing,
};

const newest = (a, b) => b.created - a.created;
export const ORDERS = {
  newest,
  "most used": (a, b) => b.uses - a.uses || newest(a, b),
  "least used": (a, b) => a.uses - b.uses || newest(b, a),
  "by prompt": (a, b) => a.prompt.localeCompare(b.prompt) || newest(a, b),
};

export const chosen = (entries, shown, order) =>
  entries.filter(SHOWN[shown] ?? SHOWN.all).sort(ORDERS[order] ?? ORDERS.newest);

// How the loss went while the entry was optimised; "" where that is not known.
export function learnt({ loss_first: first, loss_last: last }) {
  return first == null || last == null ? "" : `loss ${first.toFixed(2)} → ${last.toFixed(2)}`;
}

export function used({ uses }) {
  return uses === 0 ? "never used" : uses === 1 ? "used once" : `used ${uses}×`;
}

export function size(bytes) {
  return bytes < 1024 ? `${bytes} B` : bytes < 1024 ** 2 ? `${Math.round(bytes / 1024)} KB` : `${(bytes / 1024 ** 2).toFixed(1)} MB`;
}

// What the graph should not be started with: sentences, most pressing first.
export function warnings(entries) {
  const count = (kind) => entries.filter(SHOWN[kind]).length;
  const said = [];
  if (count("missing")) said.push(`${count("missing")} of ${entries.length} have lost their file and cannot be used; delete them.`);
  if (entries.length && count("unused") === entries.length) said.push("None of these was ever found by a prompt.");
  return said;
}

// The file that an entry becomes on a desktop: a prompt is somebody else's text, a name has letters only.
export function packName({ prompt }) {
  const words = prompt.match(/[\p{L}\p{N}]+/gu) ?? ["entry"];
  return `${words.join(" ").slice(0, 60).trim()}.ttompack`;
}

// What is said after a pack was dropped.
export function takenIn({ taken, same, conflicting, licence }) {
  const rest = [same && `${same} were here already`, conflicting && `${conflicting} differ from yours, which stay`];
  return [`Taken in: ${taken.length} (${licence})`, ...rest.filter(Boolean)].join("; ") + ".";
}
