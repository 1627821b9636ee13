// The layout as the editor reads, writes and interpolates it, held against the core's own answers.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { LayoutError, boxAt, frameTimes, layoutJson, onStage, parseLayout } from "../../web/lib/layout.js";

const { times, agreed, refused } = JSON.parse(readFileSync(new URL("layouts.json", import.meta.url), "utf8"));

test("boxes between keyframes are the core's", () => {
  for (const { layout, boxes } of agreed) {
    parseLayout(JSON.stringify(layout)).objects.forEach((object, row) => {
      times.forEach((time, column) => {
        const expected = boxes[row][column];
        assert.equal(onStage(object, time), expected[0] !== null, `${object.id} at ${time}`);
        if (expected[0] === null) return;
        const { x, y, w, h } = boxAt(object, time);
        [x, y, w, h].forEach((side, index) => assert.ok(Math.abs(side - expected[index]) < 1e-11));
      });
    });
  }
});

test("what is read is written again, field by field and in order", () => {
  for (const { layout } of agreed) {
    assert.equal(layoutJson(parseLayout(JSON.stringify(layout))), JSON.stringify(layout));
  }
});

test("what the core refuses is refused, in one sentence", () => {
  const object = agreed[1].layout.objects[0];
  const many = Array.from({ length: 201 }, (_, id) => ({ ...object, id: String(id) }));
  const large = [{ objects: many }, { objects: [], prompt: "x".repeat(20_001) }].map((value) => JSON.stringify(value));
  const texts = [...large, "[".repeat(100_000), "x".repeat(1_000_001), '{"objects": [], "version": 1e999}'];
  for (const text of [...refused, ...texts]) {
    assert.throws(() => parseLayout(text), (error) => {
      assert.ok(error instanceof LayoutError, `${text.slice(0, 80)}: ${error}`);
      assert.match(error.message, /^[^\n]{5,300}\.$/);
      return true;
    });
  }
});

test("a field named like an object's innards is refused and changes nothing", () => {
  assert.throws(() => parseLayout('{"objects": [], "__proto__": {"x": 1}}'), /__proto__/);
  assert.equal({}.x, undefined);
});

test("frames are spread from the first moment to the last", () => {
  assert.deepEqual(frameTimes(5), [0, 0.25, 0.5, 0.75, 1]);
  assert.deepEqual(frameTimes(1), [0]);
});
