/**
 * @file The embedded default's grammar against brute force: every sentence of a small world written out, samples against
 * computed probabilities, calibration on the full world; and what the design promises of it: room between what labels
 * alone teach and what the hidden word classes give.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { bayesOptimal, score } from "../../examples/default/bayes.ts";
import { corpusText } from "../../examples/default/corpus.ts";
import { Grammar, LABELS, type Labelled, tokenize } from "../../examples/default/grammar.ts";
import { corpusDocument, devTable, labelledSets, modelConfig, trainTable } from "../../examples/default/make.ts";
import { buildVocabulary, SPECIAL, wordPieces } from "../../examples/default/vocabulary.ts";
import { LANTERN_QUAY, type World } from "../../examples/default/world.ts";
import { Stream } from "../../src/random.ts";

const small: World = {
  topics: [
    { things: ["boat"], people: ["captain"], places: ["at the pier"] },
    { things: ["pie"], people: ["baker"], places: ["by the stove"] },
  ],
  weathers: [["in the fog"]],
  names: { beginnings: ["mar"], endings: ["na"] },
  adjectives: { delightful: ["superb"], pleasant: [], poor: [], dreadful: ["vile"] },
  acts: { glad: ["hum"], sad: ["sigh"] },
  cries: { glad: ["hurrah"], sad: ["alas"] },
  affirm: ["very"],
  deny: ["not"],
  often: ["often"],
  seldom: ["seldom"],
};

const grammar = new Grammar();
const vocabulary = buildVocabulary(grammar);

it("writes its corpus as documents of sentences, whose words are the vocabulary's", () => {
  const documents = corpusText(30).trimEnd().split("\n\n").map((text) => text.split("\n")); // biome-ignore format: one line
  expect(documents).toEqual(Array.from({ length: 30 }, (_, i) => corpusDocument(grammar, i)));
  const words = new Set(vocabulary);
  expect(documents.flat().flatMap(tokenize).flatMap((word) => wordPieces(word, words))).not.toContain("[UNK]"); // biome-ignore format: one line
});

it("writes its corpus where it is told to, and over nothing", () => {
  const folder = mkdtempSync(join(tmpdir(), "priorwork-corpus-"));
  const script = fileURLToPath(new URL("../../examples/default/corpus.ts", import.meta.url));
  const tsx = import.meta.resolve("tsx");
  const corpus = (...args: string[]) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, ["--import", tsx, script, ...args], {
      cwd: folder,
      encoding: "utf8",
    });
    expect(stdout).toBe("");
    return [status, stderr];
  };
  try {
    const usage = "usage: npx tsx examples/default/corpus.ts FILE [DOCUMENTS]\n";
    expect(corpus()).toEqual([2, usage]);
    expect(corpus("c.txt", "1.5")).toEqual([2, usage]);
    expect(readdirSync(folder)).toEqual([]);
    expect(corpus("c.txt", "2")).toEqual([0, ""]);
    expect(readFileSync(join(folder, "c.txt"), "utf8")).toBe(corpusText(2));
    expect(corpus("c.txt", "3")).toEqual([2, "c.txt: this exists already. Choose another name.\n"]);
    expect(readFileSync(join(folder, "c.txt"), "utf8")).toBe(corpusText(2));
    expect(corpus("none/c.txt")).toEqual([4, "none/c.txt: cannot write: no such file or folder. Check the path.\n"]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

describe("exact inference", () => {
  it("gives every derivation of a small world its probability, and they sum to 1", () => {
    const g = new Grammar(small);
    const brute = new Map<string, number>(); // P(text) by writing out all derivations
    let total = 0;
    for (const { text, p } of g.derivations()) {
      brute.set(text, (brute.get(text) ?? 0) + p);
      total += p;
    }
    expect(total).toBeCloseTo(1, 10);
    expect(brute.size).toBeGreaterThan(10_000);
    let sum = 0;
    let worst = 0;
    let i = 0;
    for (const [text, p] of brute) {
      if (i++ % 101 !== 0) continue; // inference on a sample of them, to be quick
      const computed = Math.exp(g.logProbability(text));
      sum += p;
      worst = Math.max(worst, Math.abs(computed / p - 1));
    }
    expect(sum).toBeGreaterThan(0);
    expect(worst).toBeLessThan(1e-9);
  });

  it("computes the frequency with which a sentence is sampled", () => {
    const g = new Grammar(small);
    const counts = new Map<string, number>();
    const n = 20_000;
    for (const { text } of g.sampleLabelled(new Stream(3, "frequency"), n)) {
      counts.set(text, (counts.get(text) ?? 0) + 1);
    }
    const top = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 8);
    for (const [text, count] of top) {
      const expected = n * Math.exp(g.logProbability(text));
      expect(Math.abs(count - expected)).toBeLessThan(4.5 * Math.sqrt(expected));
    }
  });

  it("is calibrated: among sentences with posterior p a share p is pleased", () => {
    const bins = Array.from({ length: 10 }, () => ({ n: 0, pleased: 0, p: 0, variance: 0 }));
    for (const { text, label } of grammar.sampleLabelled(new Stream(4, "calibration"), 2000)) {
      const p = grammar.exactPosterior(text)[1];
      const bin = bins[Math.min(9, Math.floor(10 * p))];
      if (!bin) continue;
      bin.n++;
      bin.pleased += label;
      bin.p += p;
      bin.variance += p * (1 - p);
    }
    for (const bin of bins) expect(Math.abs(bin.pleased - bin.p)).toBeLessThan(4 * Math.sqrt(bin.variance) + 1e-9);
  });

  it("knows denial and concession, and nothing from topic or weather", () => {
    const pleased = (text: string) => grammar.exactPosterior(text)[1];
    // strong 0.56 against otherStrong 0.01, and 7 % of the labels misheard
    expect(pleased("The rope is splendid.")).toBeCloseTo((0.93 * 0.56 + 0.07 * 0.01) / 0.57, 12);
    expect(pleased("The rope is not splendid.")).toBeCloseTo((0.93 * 0.01 + 0.07 * 0.56) / 0.57, 12);
    expect(pleased("The rope is splendid, but the captain sighs.")).toBeLessThan(0.08);
    expect(pleased("Although the captain sighs, the rope is splendid.")).toBeGreaterThan(0.92);
    expect(pleased("In the snow, the wig is splendid.")).toBeCloseTo(pleased("The rope is splendid."), 12);
    expect(pleased("the rope is SPLENDID .")).toBe(pleased("The rope is splendid."));
    expect(() => grammar.exactPosterior("The rope is a rope.")).toThrow(/not a sentence of the grammar/);
  });
});

describe("samples", () => {
  it("depend on the stream alone", () => {
    const draw = () => grammar.sampleDocument(new Stream(5, "document", 7));
    expect(draw()).toEqual(draw());
    expect(grammar.sampleDocument(new Stream(5, "document", 8))).not.toEqual(draw());
  });

  it("share mood, topic and weather within a document", () => {
    const { latents, sentences } = grammar.sampleDocument(new Stream(6, "document"));
    const things = new Set(LANTERN_QUAY.topics.flatMap((t, i) => (i === latents.topic ? [] : t.things)));
    for (const word of sentences.flatMap(tokenize)) expect(things).not.toContain(word);
    const log = sentences.map((s) => grammar.joint(s, "UTTERANCE")).map(([a, b]) => Math.log(b / a));
    expect(Math.sign(log.reduce((a, b) => a + b, 0))).toBe(latents.mood === 1 ? 1 : -1);
  });
});

describe("word pieces", () => {
  const known = new Set(vocabulary);

  it("are a few hundred, the special ones first, each once", () => {
    expect(vocabulary.slice(0, 5)).toEqual([...SPECIAL]);
    expect(known.size).toBe(vocabulary.length);
    expect(vocabulary.length).toBeGreaterThan(300);
    expect(vocabulary.length).toBeLessThan(600);
  });

  it("cover every word, cut where the rule says, and fall back to letters", () => {
    for (const word of grammar.words()) {
      const pieces = wordPieces(word, known);
      expect(pieces.map((p) => p.replace("##", "")).join("")).toBe(word);
      expect(pieces.length).toBeLessThanOrEqual(2);
    }
    expect(wordPieces("Ropes of Marna hum, joyous.", known)).toEqual(
      "rope ##s of mar ##na hum , joy ##ous .".split(" "),
    );
    expect(wordPieces("xi 42", known)).toEqual(["x", "##i", "4", "##2"]);
    expect(wordPieces("é", known)).toEqual(["[UNK]"]);
  });

  it("make sentences of 5 to 30 pieces", () => {
    const lengths = grammar.sampleLabelled(new Stream(8, "lengths"), 500).map((s) => wordPieces(s.text, known).length);
    expect(Math.min(...lengths)).toBeGreaterThanOrEqual(3);
    expect(Math.max(...lengths)).toBeLessThanOrEqual(30);
  });
});

describe("the best possible", () => {
  it("scores as by hand", () => {
    const p = [
      [0.1, 0.9],
      [0.2, 0.8],
      [0.7, 0.3],
      [0.6, 0.4],
    ];
    const s = score(p, [1, 0, 0, 0]);
    expect(s.accuracy).toBe(0.75);
    expect(s.nll).toBeCloseTo(-(Math.log(0.9) + Math.log(0.2) + Math.log(0.7) + Math.log(0.6)) / 4, 12);
    expect(s.brier).toBeCloseTo((0.02 + 1.28 + 0.18 + 0.32) / 4, 12);
    expect(s.ece).toBeCloseTo((0.1 + 0.8 + 0.3 + 0.4) / 4, 12);
  });

  it("leaves the room that the example needs", () => {
    const { dev } = labelledSets(grammar);
    const best = bayesOptimal(dev);
    for (const s of [best, best.expected]) {
      expect(s.accuracy).toBeGreaterThan(0.86);
      expect(s.accuracy).toBeLessThan(0.94);
      expect(s.nll).toBeGreaterThan(0.2);
      expect(s.nll).toBeLessThan(0.36);
      expect(s.ece).toBeLessThan(0.05);
    }
  });

  it("is out of reach for words alone, and not for anyone who knows the hidden classes", () => {
    const train = grammar.sampleLabelled(new Stream(9, "room.train"), 64);
    const test = grammar.sampleLabelled(new Stream(9, "room.test"), 500);
    const bag = logisticAccuracy(train, test, (t) => wordPieces(t, new Set(vocabulary)));
    const classes = logisticAccuracy(train, test, (t) => tokenize(t).flatMap((w) => classOf(w) ?? []));
    const composed = logisticAccuracy(train, test, composedClasses);
    expect(bag).toBeLessThan(0.66);
    expect(classes).toBeLessThan(0.78);
    expect(composed).toBeGreaterThan(0.82);
  });
});

describe("the files in the repository", () => {
  const read = (name: string) => readFileSync(new URL(`../../examples/default/${name}`, import.meta.url), "utf8");

  it("are what the script makes", () => {
    const { train, dev } = labelledSets(grammar);
    expect(read("train.tsv")).toBe(trainTable(train));
    expect(read("dev.tsv")).toBe(devTable(dev));
    expect(read("model/vocab.txt").trimEnd().split("\n")).toEqual(vocabulary);
    expect(JSON.parse(read("model/config.json"))).toEqual(modelConfig(vocabulary.length));
    expect(new Set([...train, ...dev].map((r) => LABELS[r.label])).size).toBe(2);
  });
});

/** The class of a word that takes a side, 0–5: as far from the other side's class as from the end of the list. */
function classOf(word: string): string | undefined {
  const { adjectives: a, acts } = LANTERN_QUAY;
  const classes = [a.dreadful, a.poor, acts.sad, acts.glad, a.pleasant, a.delightful];
  const k = classes.findIndex((c) => c.includes(word) || c.includes(word.replace(/s$/, "")));
  return k < 0 ? undefined : String(k);
}

/** Classes after "not" and "but" are understood: a denied or conceded word counts for its opposite. */
function composedClasses(text: string): string[] {
  const words = tokenize(text);
  const denials = new Set([...LANTERN_QUAY.deny, ...LANTERN_QUAY.seldom, "nothing", "nobody"]);
  const but = words.indexOf("but");
  let denied = false;
  let conceded = false;
  return words.flatMap((w, i) => {
    if ([",", "and", "but", "although"].includes(w)) denied = false;
    if (w === ",") conceded = false;
    if (w === "although") conceded = true;
    if (denials.has(w)) denied = true;
    const k = classOf(w);
    if (k === undefined) return [];
    return [denied !== (conceded || i < but) ? String(5 - Number(k)) : k];
  });
}

/** Accuracy on `test` of ridge logistic regression on counts of features, by plain gradient descent. */
function logisticAccuracy(train: Labelled[], test: Labelled[], features: (text: string) => string[]): number {
  const w = new Map<string, number>();
  const z = (xs: string[]) => xs.reduce((sum, x) => sum + (w.get(x) ?? 0), w.get("bias") ?? 0);
  const rows = train.map((r) => ({ xs: features(r.text), y: r.label }));
  for (let step = 0; step < 400; step++) {
    const gradient = new Map([...w].map(([x, v]) => [x, (0.3 * v) / rows.length]));
    for (const { xs, y } of rows) {
      const e = (1 / (1 + Math.exp(-z(xs))) - y) / rows.length;
      for (const x of [...xs, "bias"]) gradient.set(x, (gradient.get(x) ?? 0) + e);
    }
    for (const [x, g] of gradient) w.set(x, (w.get(x) ?? 0) - 0.5 * g);
  }
  return test.filter((r) => (z(features(r.text)) > 0 ? 1 : 0) === r.label).length / test.length;
}
