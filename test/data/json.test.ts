/** @file JSON from outside: what `JSON.parse` takes in silence, or at any price, is refused in one sentence. */
import { describe, expect, it } from "vitest";
import { parseJson, refuseBrackets } from "../../src/data/json.ts";
import { InputError } from "../../src/errors.ts";

const nested = (depth: number) => `{"a":${"[".repeat(depth - 1)}${"]".repeat(depth - 1)}}`;

describe("parseJson", () => {
  it.each([
    ['{"a": 1, "b": {"a": 2, "a": 3}}', 'c.json: the key "a" stands twice (line 1). Keep one of them.'],
    ['{"a": {"size": [1, 1e999]}}', 'c.json: "size" has a number that is too large (expected at most 1.8e308).'],
    [`{"a": -${"9".repeat(400)}}`, 'c.json: "a" has a number that is too large'],
    [nested(101), "c.json: brackets nested 101 deep (expected at most 100). Is this the right file?"],
    [`{"a":[${"[],".repeat(500_000)}0]}`, "c.json: 500002 brackets (expected at most 500000)."],
    ["[]", "c.json: not a JSON object."],
    [" ", "c.json: the file is empty"],
  ])("refuses %.40s", (text, message) => {
    expect(() => parseJson(text, "c.json")).toThrow(InputError);
    expect(() => parseJson(text, "c.json")).toThrow(message);
  });

  it("takes what only looks like that: brackets, keys and large numbers inside a string", () => {
    const text = `{"a": "${"[".repeat(600_000)}", "b": "\\"{1e999", "c": 1e300, "d": {"a": 1}}`;
    expect(parseJson(text, "c.json")).toMatchObject({ b: '"{1e999', c: 1e300, d: { a: 1 } });
    expect(() => refuseBrackets(nested(100), "c.json")).not.toThrow();
  });
});
