// What the memory browser shows of entries, and says of them.
import assert from "node:assert/strict";
import { test } from "node:test";

import { ORDERS, SHOWN, chosen, learnt, packName, size, takenIn, used, warnings } from "../../web/lib/entries.js";

const entry = (id, values = {}) => ({
  id, prompt: id, created: 1, uses: 0, pinned: false, missing: false, loss_first: null, loss_last: null, ...values,
});
const entries = [
  entry("b", { created: 1, uses: 3 }), entry("a", { created: 2, pinned: true }), entry("c", { created: 3, missing: true, uses: 1 }),
];
const ids = (list) => list.map(({ id }) => id).join("");

test("every order holds the same entries, and leaves the given ones alone", () => {
  for (const order of Object.keys(ORDERS)) assert.equal([...ids(chosen(entries, "all", order))].sort().join(""), "abc");
  assert.equal(ids(entries), "bac");
});

test("entries stand in the order asked for", () => {
  assert.equal(ids(chosen(entries, "all", "newest")), "cab");
  assert.equal(ids(chosen(entries, "all", "most used")), "bca");
  assert.equal(ids(chosen(entries, "all", "least used")), "acb");
  assert.equal(ids(chosen(entries, "all", "by prompt")), "abc");
});

test("only what is asked for is shown", () => {
  const found = Object.fromEntries(Object.keys(SHOWN).map((shown) => [shown, ids(chosen(entries, shown, "by prompt"))]));
  assert.deepEqual(found, { all: "abc", unused: "a", pinned: "a", missing: "c" });
  assert.equal(ids(chosen(entries, "no such filter", "no such order")), "cab");
});

test("facts are said in words", () => {
  assert.equal(learnt({ loss_first: 0.481, loss_last: 0.16 }), "loss 0.48 → 0.16");
  assert.equal(learnt({ loss_first: null, loss_last: 0.1 }), "");
  assert.deepEqual([0, 1, 7].map((uses) => used({ uses })), ["never used", "used once", "used 7×"]);
  assert.deepEqual([900, 37_000, 9 * 1024 ** 2].map(size), ["900 B", "36 KB", "9.0 MB"]);
});

test("what is missing or was never found is told before a run", () => {
  assert.deepEqual(warnings([]), []);
  assert.deepEqual(warnings(entries), ["1 of 3 have lost their file and cannot be used; delete them."]);
  assert.deepEqual(warnings([entry("x")]), ["None of these was ever found by a prompt."]);
});

test("a pack that was taken in is accounted for", () => {
  const told = { taken: ["x"], same: 2, conflicting: 1, licence: "CC0-1.0" };
  assert.equal(takenIn(told), "Taken in: 1 (CC0-1.0); 2 were here already; 1 differ from yours, which stay.");
  assert.equal(takenIn({ taken: [], same: 0, conflicting: 0, licence: "MIT" }), "Taken in: 0 (MIT).");
});

test("a file is named by the prompt's words alone", () => {
  assert.equal(packName({ prompt: "a red circle: ../../<b>up</b>\n" }), "a red circle b up b.ttompack");
  assert.equal(packName({ prompt: "./:\\" }), "entry.ttompack");
  assert.equal(packName({ prompt: "é ".repeat(200) }).length, 59 + ".ttompack".length);
});
