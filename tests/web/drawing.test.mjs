// What can be done to a drawing: every change gives a layout that the core would take.
import assert from "node:assert/strict";
import { test } from "node:test";

import * as d from "../../web/lib/drawing.js";
import { redo, record, startHistory, undo } from "../../web/lib/history.js";
import { boxAt, parseLayout } from "../../web/lib/layout.js";
import { frameOf, markAt, parseTime, showTime, snapTime, timeOf } from "../../web/lib/timeline.js";

const BOX = { x: 0.1, y: 0.2, w: 0.3, h: 0.4 };
const FRAMES = 21;
const one = () => d.addObject(d.emptyDrawing(), BOX);
const object = (drawing, id) => d.objectOf(drawing, id);

test("nothing drawn is an empty value, and back", () => {
  assert.equal(d.drawingJson(d.emptyDrawing()), "");
  assert.deepEqual(d.openDrawing(""), d.emptyDrawing());
});

test("what is drawn survives the workflow file", () => {
  let { drawing, id } = one();
  drawing = d.setBox(drawing, id, 0.5, { ...BOX, x: 0.6 }, FRAMES);
  drawing = d.setLook(drawing, id, { colour: "#123456", locked: true });
  const again = d.openDrawing(d.drawingJson(drawing), JSON.parse(JSON.stringify(drawing.look)));
  assert.deepEqual(again, drawing);
  assert.equal(d.drawingJson(again), d.drawingJson(drawing));
});

test("hostile looks are dropped, sound ones kept", () => {
  const { drawing, id } = one();
  const json = d.drawingJson(drawing);
  for (const look of [null, 5, "x", [], { [id]: null }, { [id]: { colour: "url(//host)" } }, { [id]: { locked: 1 } }]) {
    assert.deepEqual(d.openDrawing(json, look).look, {});
  }
  assert.deepEqual(d.openDrawing(json, { [id]: { colour: "#AAbbcc", hidden: true, x: 1 }, y: {} }).look, {
    [id]: { colour: "#AAbbcc", hidden: true },
  });
});

test("random editing never leaves what a layout may be", () => {
  let seed = 7;
  const next = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const pick = (list) => list[Math.floor(next() * list.length)];
  let drawing = d.emptyDrawing();
  for (let step = 0; step < 3000; step++) {
    const { objects } = drawing.layout;
    const id = objects.length ? pick(objects).id : null;
    const index = id ? Math.floor(next() * object(drawing, id).keyframes.length) : 0;
    const box = { x: 3 * next() - 1, y: 3 * next() - 1, w: 3 * next() - 1, h: 3 * next() - 1 };
    const time = next();
    const before = JSON.stringify(drawing);
    const old = drawing;
    const change = pick(id === null ? ["add"] : [
      "add", "remove", "duplicate", "rename", "box", "box", "box", "key", "unkey", "shift", "ease", "path", "enter",
      "leave", "paste", "phrase", "look",
    ]);
    drawing = {
      add: () => (objects.length < 6 ? d.addObject(drawing, box, time).drawing : drawing),
      remove: () => (objects.length > 2 ? d.removeObject(drawing, id) : drawing),
      duplicate: () => (objects.length < 6 ? d.duplicateObject(drawing, id).drawing : drawing),
      rename: () => d.renameObject(drawing, id, pick(["ball", " ", "", "x".repeat(300), "<b>", "__proto__"])).drawing,
      box: () => d.setBox(drawing, id, time, box, FRAMES),
      key: () => d.addKey(drawing, id, time, FRAMES),
      unkey: () => d.removeKey(drawing, id, index),
      shift: () => d.moveKey(drawing, id, index, 3 * next() - 1),
      ease: () => d.setEase(drawing, id, index, pick(["linear", "in", "out", "in_out", "hold"])),
      path: () => d.movePath(drawing, id, 3 * next() - 1, 3 * next() - 1),
      enter: () => d.setStage(drawing, id, { enter: next() }),
      leave: () => d.setStage(drawing, id, { leave: next() }),
      paste: () => (objects.length < 4 ? d.pasteJson(drawing, d.copyJson(drawing)).drawing : drawing),
      phrase: () => d.setPhrase(drawing, id, pick(["ball", "", "red ball"])),
      look: () => d.setLook(drawing, id, { colour: "#ffffff" }),
    }[change]();
    assert.equal(JSON.stringify(old), before, `${change} changed its input`);
    if (drawing.layout.objects.length) parseLayout(d.drawingJson(drawing));
  }
});

test("a box set at a keyframe changes it, elsewhere it adds one", () => {
  let { drawing, id } = one();
  drawing = d.setBox(drawing, id, 0.02, { ...BOX, x: 0.5 }, FRAMES);
  assert.deepEqual(object(drawing, id).keyframes.map((key) => key.time), [0]);
  drawing = d.setBox(drawing, id, 0.5, { ...BOX, x: 0.1 }, FRAMES);
  assert.deepEqual(object(drawing, id).keyframes.map((key) => key.time), [0, 0.5]);
  assert.ok(Math.abs(boxAt(object(drawing, id), 0.25).x - 0.3) < 1e-9);
});

test("keyframes do not pass their neighbours, and the last one stays", () => {
  let { drawing, id } = one();
  for (const time of [0.5, 1]) drawing = d.addKey(drawing, id, time, FRAMES);
  drawing = d.moveKey(drawing, id, 1, 5);
  assert.ok(object(drawing, id).keyframes[1].time < 1);
  for (let again = 0; again < 5; again++) drawing = d.removeKey(drawing, id, 0);
  assert.equal(object(drawing, id).keyframes.length, 1);
});

test("a name takes its id and phrase along until they are something else", () => {
  let { drawing, id } = one();
  ({ drawing, id } = d.renameObject(drawing, id, "red circle"));
  assert.equal(id, "red circle 1");
  assert.equal(object(drawing, id).phrase, "red circle");
  drawing = d.setLook(d.setPhrase(drawing, id, "the circle"), id, { hidden: true });
  ({ drawing, id } = d.renameObject(drawing, id, "ball"));
  assert.deepEqual([id, object(drawing, id).phrase, d.lookOf(drawing, id)], ["ball 1", "the circle", { hidden: true }]);
});

test("copies are a layout; pasted objects get ids of their own", () => {
  const { drawing, id } = one();
  assert.equal(parseLayout(d.copyJson(drawing, [id])).objects[0].id, id);
  const pasted = d.pasteJson(drawing, d.copyJson(drawing));
  assert.deepEqual(pasted.drawing.layout.objects.map((item) => item.id), ["object 1 1", "object 1 2"]);
  assert.throws(() => d.pasteJson(drawing, "hello"), /not valid JSON/);
  assert.throws(() => d.pasteJson(drawing, '{"objects": []}'), /no objects/);
});

test("one phrase, one colour, until one is chosen", () => {
  let { drawing, id } = one();
  let copy;
  ({ drawing, id: copy } = d.duplicateObject(drawing, id));
  assert.equal(d.colourOf(drawing, id), d.colourOf(drawing, copy));
  drawing = d.setLook(drawing, copy, { colour: "#ffffff" });
  assert.notEqual(d.colourOf(drawing, id), d.colourOf(drawing, copy));
});

test("undo goes back step by step, redo forth, a drag is one step", () => {
  let history = startHistory(0);
  history = record(history, 1);
  for (const value of [2, 3, 4]) history = record(history, value, "drag");
  history = record(history, 5);
  const seen = [];
  for (let step = 0; step < 4; step++) seen.push((history = undo(history)).present);
  assert.deepEqual(seen, [4, 1, 0, 0]);
  history = redo(redo(history));
  assert.equal(history.present, 4);
  assert.equal(redo(record(history, 9)).present, 9);
  // After an undo, the same drag's name starts a step of its own.
  assert.equal(undo(record(undo(history), 7, "drag")).present, 1);
});

test("times are frames or percent, on the frames", () => {
  assert.equal(parseTime("10", FRAMES), 0.5);
  assert.equal(parseTime("10f", FRAMES), 0.5);
  assert.equal(parseTime("25%", FRAMES), 0.25);
  for (const text of ["21", "-1", "", "x", "120%"]) assert.equal(parseTime(text, FRAMES), null);
  assert.equal(showTime(0.5, FRAMES), "10");
  for (let frame = 0; frame < 81; frame++) assert.equal(frameOf(timeOf(frame, 81), 81), frame);
  assert.equal(snapTime(0.49, FRAMES), 0.5);
  assert.equal(snapTime(0.7, 1), 0);
});

test("the pointer finds keyframes, edges and bars", () => {
  const track = { enter: 0.2, leave: 0.8, keyframes: [{ time: 0.2 }, { time: 0.5 }] };
  const at = (x) => markAt(track, x, 100, 5);
  assert.deepEqual(at(50), { kind: "key", index: 1 });
  assert.deepEqual(at(20), { kind: "key", index: 0 });
  assert.deepEqual(at(79), { kind: "leave" });
  assert.deepEqual(at(35), { kind: "bar" });
  assert.deepEqual(at(5), { kind: "none" });
});
