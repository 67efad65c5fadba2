/** @file The tokenizer against PyTorch's tokens, from both kinds of file, and what it says about broken ones. */

import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { loadTokenizer } from "../../src/data/load.ts";
import { BertTokenizer } from "../../src/data/tokenizer.ts";
import { InputError } from "../../src/errors.ts";
import { needs, shared } from "./shared.ts";

const WORDS = [
  "[PAD]",
  "[UNK]",
  "[CLS]",
  "[SEP]",
  "[MASK]",
  "two",
  "ferr",
  "##ies",
  "##y",
  "late",
  ",",
  "東",
  "京",
  "cafe",
];
const WORDS_2 = [...WORDS, "οδοσ", "a", "b", "Two", "__proto__", "1"];
const vocab = (words: string[]) => ({ name: "vocab.txt", text: `${words.join("\n")}\n` });
const config = (settings: object) => ({ name: "tokenizer_config.json", text: JSON.stringify(settings) });
const small = BertTokenizer.from({ vocab: vocab(WORDS_2) });
const tokens = (t: BertTokenizer, ids: number[]) => ids.map((id) => t.token(id));

describe("a bare vocab.txt", () => {
  it("splits words, punctuation and ideographs, lower-cases and strips accents", () => {
    expect(tokens(small, small.encode("Two ferries, LATE 東京café").ids)).toEqual(
      ["[CLS]", "two", "ferr", "##ies", ",", "late", "東", "京", "cafe", "[SEP]"], // prettier to read in one line
    );
  });

  it("keeps case and accents when tokenizer_config.json says so", () => {
    const cased = BertTokenizer.from({ vocab: vocab(WORDS_2), config: config({ do_lower_case: false }) });
    expect(tokens(cased, cased.pieces("Two two café"))).toEqual(["Two", "two", "[UNK]"]);
    expect(() => BertTokenizer.from({ vocab: vocab(WORDS), config: config({ do_lower_case: "no" }) })).toThrow(
      'tokenizer_config.json: do_lower_case is "no" (expected true or false)',
    );
  });

  it("does as Hugging Face at a final sigma and at ideographs outside the basic plane", () => {
    expect(tokens(small, small.pieces("ΟΔΟΣ"))).toEqual(["οδοσ"]);
    expect(tokens(small, small.pieces("a𠀀b"))).toEqual(["a", "[UNK]", "b"]);
  });

  it("makes [UNK] of unknown words and of words above 100 characters", () => {
    expect(tokens(small, small.pieces("xyz two"))).toEqual(["[UNK]", "two"]);
    expect(tokens(small, small.pieces(`${"a".repeat(101)} a`))).toEqual(["[UNK]", "a"]);
  });

  it("knows its ids and its special tokens", () => {
    expect([small.pad, small.unk, small.cls, small.sep, small.mask]).toEqual([0, 1, 2, 3, 4]);
    expect(small.vocabSize).toBe(20);
    expect(small.id("##ies")).toBe(7);
    expect(small.id("toString")).toBeUndefined();
    expect(small.id("__proto__")).toBe(18);
    expect(small.token(20)).toBeUndefined();
    expect(small.pieces("[MASK] two")).toEqual([4, 5]);
    expect(small.decode(small.encode("two ferries, late").ids)).toBe("two ferries, late");
    expect(small.decode([2, 3])).toBe("");
  });

  it("gives the same through its own tokenizer.json, whose truncation and padding are ignored", () => {
    const json = { ...small.json, truncation: { max_length: 2 }, padding: { strategy: { Fixed: 9 } } };
    const again = BertTokenizer.from({ tokenizer: { name: "tokenizer.json", text: JSON.stringify(json) } });
    const text = "Two ferries, late. 東京 café __proto__ 1";
    expect(again.encode(text).ids).toEqual(small.encode(text).ids);
    expect(again.id("__proto__")).toBe(18);
  });
});

describe("pairs and truncation", () => {
  it("frames a pair and gives the second text type 1", () => {
    const { ids, typeIds, truncated } = small.encode("two", "late ferry");
    expect(tokens(small, ids)).toEqual(["[CLS]", "two", "[SEP]", "late", "ferr", "##y", "[SEP]"]);
    expect(typeIds).toEqual([0, 0, 0, 1, 1, 1, 1]);
    expect(truncated).toBe(false);
  });

  it("frames an empty second text as a pair, and an empty text alone", () => {
    expect(tokens(small, small.encode("", "").ids)).toEqual(["[CLS]", "[SEP]", "[SEP]"]);
    expect(tokens(small, small.encode("").ids)).toEqual(["[CLS]", "[SEP]"]);
  });

  // What the Rust library's longest_first keeps, [first, second] of [first, second] with room for `room` word pieces.
  it.each([
    [[5, 3], 8, [5, 3]],
    [[5, 3], 7, [4, 3]],
    [[9, 2], 6, [4, 2]],
    [[2, 9], 6, [2, 4]],
    [[9, 8], 6, [3, 3]],
    [[9, 8], 7, [4, 3]],
    [[8, 9], 7, [3, 4]],
    [[8, 8], 7, [3, 4]],
    [[1, 8], 2, [1, 1]],
  ])("cuts a pair of %j to %i as %j", ([first, second], room, [a, b]) => {
    const words = (n: number | undefined, word: string) => Array(n).fill(word).join(" ");
    const { ids, typeIds, truncated } = small.encode(words(first, "a"), words(second, "b"), { maxLength: room + 3 });
    expect(ids.filter((id) => id === small.id("a")).length).toBe(a);
    expect(ids.filter((id) => id === small.id("b")).length).toBe(b);
    expect(typeIds.length).toBe(ids.length);
    expect(ids.at(-1)).toBe(small.sep);
    expect(truncated).toBe((first ?? 0) + (second ?? 0) > room);
  });

  it("cuts a text to maxLength and says so; refuses a maxLength without room", () => {
    expect(small.encode("a b a b", undefined, { maxLength: 4 })).toEqual({
      ids: [small.cls, small.id("a"), small.id("b"), small.sep],
      typeIds: [0, 0, 0, 0],
      truncated: true,
    });
    expect(small.encode("a b", undefined, { maxLength: 4 }).truncated).toBe(false);
    expect(() => small.encode("a", undefined, { maxLength: 2 })).toThrow(RangeError);
    expect(() => small.encode("a", "b", { maxLength: 4 })).toThrow(RangeError);
  });
});

describe("broken tokenizer files", () => {
  const fromVocab = (words: string[]) => BertTokenizer.from({ vocab: vocab(words) });
  const fromJson = (change: (json: Record<string, unknown>) => object) => {
    const json = change(structuredClone(small.json) as Record<string, unknown>);
    return BertTokenizer.from({ tokenizer: { name: "tokenizer.json", text: JSON.stringify(json) } });
  };
  const says = (work: () => unknown, message: string) => {
    expect(work).toThrow(InputError);
    expect(work).toThrow(message);
  };

  it("vocab.txt: no special tokens, a duplicate, an empty line, an empty file", () => {
    says(
      () => fromVocab(["[PAD]", "[SEP]", "[MASK]", "a"]),
      "vocab.txt: [CLS], [UNK] missing from the vocabulary of 4 tokens",
    );
    says(() => fromVocab([...WORDS, "two"]), 'vocab.txt:15: token "two" stands on line 6 already');
    says(() => fromVocab([...WORDS, "", "x"]), "vocab.txt:15: an empty line");
    says(() => fromVocab([]), "vocab.txt: the file is empty");
  });

  it("vocab.txt with CRLF is read as with LF", () => {
    const crlf = BertTokenizer.from({ vocab: { name: "vocab.txt", text: WORDS_2.join("\r\n") } });
    expect(crlf.encode("two ferries").ids).toEqual(small.encode("two ferries").ids);
  });

  it("tokenizer.json: not JSON, not WordPiece, not BERT", () => {
    const from = (text: string) => BertTokenizer.from({ tokenizer: { name: "tokenizer.json", text } });
    says(() => from("{"), "tokenizer.json: not valid JSON");
    says(() => from("[]"), "tokenizer.json: not a JSON object");
    says(() => from("{}"), 'tokenizer.json: no "model"');
    says(
      () => fromJson((j) => ({ ...j, model: { type: "BPE", vocab: {} } })),
      'not a WordPiece tokenizer (found "BPE")',
    );
    says(() => fromJson((j) => ({ ...j, normalizer: null })), 'normalizer is "none"');
    says(() => fromJson((j) => ({ ...j, pre_tokenizer: { type: "Whitespace" } })), 'pre_tokenizer is "Whitespace"');
    says(() => fromJson((j) => ({ ...j, post_processor: { type: "RobertaProcessing" } })), "post_processor is");
    says(
      () => fromJson((j) => ({ ...j, post_processor: { type: "TemplateProcessing", single: [], pair: [] } })),
      'post_processor frames a text as ""',
    );
  });

  it("tokenizer.json: a vocabulary that cannot be", () => {
    const withModel = (model: object) => () => fromJson((j) => ({ ...j, model: { ...(j.model as object), ...model } }));
    says(withModel({ vocab: { a: 0 } }), 'tokens "a" and "[PAD]" share id 0');
    says(withModel({ vocab: { "[PAD]": 0, x: 1.5 } }), 'the id of token "x" is "1.5"');
    says(withModel({ vocab: { x: 4e9 } }), 'the id of token "x" is "4000000000"');
    says(withModel({ vocab: [] }), 'no "vocab"');
    says(withModel({ max_input_chars_per_word: 1e9 }), "max_input_chars_per_word");
    says(
      () => fromJson((j) => ({ ...j, added_tokens: [], model: { ...(j.model as object), vocab: { a: 0 } } })),
      "missing from the vocabulary",
    );
    says(() => fromJson((j) => ({ ...j, added_tokens: [{ id: 3 }] })), '"added_tokens" has no content');
  });

  it("tokenizer.json with a key that stands twice", () => {
    const text = '{"model": {"vocab": {"a": 1,\n "b": 2, "\\u0061": 3}}}';
    says(
      () => BertTokenizer.from({ tokenizer: { name: "t.json", text } }),
      't.json: the key "a" stands twice (line 2)',
    );
  });

  it("a folder without tokenizer files", () => {
    says(() => loadTokenizer("test/data"), "test/data: no tokenizer (expected tokenizer.json or vocab.txt)");
  });
});

const miniLm = needs("models/all-MiniLM-L6-v2", "reference/minilm_forward.json");
describe.skipIf(miniLm.skip)(miniLm.named("MiniLM's tokens are Hugging Face's"), () => {
  const folder = (file: string) => shared("models/all-MiniLM-L6-v2", file);
  const read = (name: string) => ({ name, text: readFileSync(folder(name), "utf8") });
  const reference = () =>
    JSON.parse(readFileSync(shared("reference/minilm_forward.json"), "utf8")) as {
      sentences: (string | [string, string])[];
      tokens: string[][];
      lengths: number[];
    };
  const expectReference = (t: BertTokenizer) => {
    const { sentences, tokens: expected, lengths } = reference();
    sentences.forEach((sentence, i) => {
      const [text, pair] = typeof sentence === "string" ? [sentence, undefined] : sentence;
      const { ids } = t.encode(text, pair, { maxLength: 64 });
      expect(tokens(t, ids)).toEqual(expected[i]?.slice(0, lengths[i]));
    });
  };

  it("from tokenizer.json, without its padding to 128", () => expectReference(loadTokenizer(folder("."))));
  it("from vocab.txt alone", () => expectReference(BertTokenizer.from({ vocab: read("vocab.txt") })));
  it("both the same on SST-2's dev set", () => {
    const [a, b] = [loadTokenizer(folder(".")), BertTokenizer.from({ vocab: read("vocab.txt") })];
    const lines = readFileSync(shared("data/sst2/dev.tsv"), "utf8").split("\n");
    for (const line of lines) expect(a.encode(line).ids).toEqual(b.encode(line).ids);
  });
});

const chinese = needs("data/vocab/bert-base-chinese", "data/chnsenticorp/dev.tsv");
describe.skipIf(chinese.skip)(chinese.named("bert-base-chinese"), () => {
  it("reads 21,128 tokens and splits a review into characters, hardly any unknown", () => {
    const t = loadTokenizer(shared("data/vocab/bert-base-chinese"));
    expect(t.vocabSize).toBe(21128);
    expect(tokens(t, t.pieces("房间很好，Good 2012年!"))).toEqual([
      "房",
      "间",
      "很",
      "好",
      "，",
      "good",
      "2012",
      "年",
      "!",
    ]);
    const ids = readFileSync(shared("data/chnsenticorp/dev.tsv"), "utf8")
      .split("\n")
      .flatMap((line) => t.pieces(line));
    expect(ids.length).toBeGreaterThan(100_000);
    expect(ids.filter((id) => id === t.unk).length / ids.length).toBeLessThan(0.01);
  });
});
