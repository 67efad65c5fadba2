/**
 * @file The probabilistic grammar behind the embedded default, and its exact inference. A sentence has three hidden
 * causes: the speaker's mood (the label), the topic and the weather. All sentences of a document share them and none is
 * ever named. Because the rules are known, log P(text) and P(label | text) are too: `inside` adds up every derivation.
 * So the table of `npm start` can put beside each model the numbers that no model can beat.
 */
import { InputError } from "../../src/errors.ts";
import type { Stream } from "../../src/random.ts";
import { ACT_AGREES, CRY_AGREES, MISHEARD, RULES, STRENGTH } from "./rules.ts";
import { LANTERN_QUAY, type World } from "./world.ts";

/** Label k is mood k. */
export const LABELS = ["displeased", "pleased"] as const;
export type Mood = 0 | 1;

export interface Latents {
  readonly mood: Mood;
  readonly topic: number;
  readonly weather: number;
}

/** Labelled text is made of sentences; a document's utterances are these, some after a cry, and notes dense with words. */
export type Start = "SENTENCE" | "UTTERANCE";

export interface Labelled {
  readonly text: string;
  readonly label: Mood;
}

type Part = { readonly word: string } | { readonly symbol: string; readonly flip: boolean };
interface Alternative {
  readonly p: number;
  readonly parts: readonly Part[];
}
/** A symbol's alternatives, also by their first word, so that matching does not try a hundred adjectives. */
interface Table {
  readonly all: readonly Alternative[];
  readonly open: readonly Alternative[];
  readonly byFirstWord: ReadonlyMap<string, readonly Alternative[]>;
}

function table(choices: readonly (readonly [number, string])[]): Table {
  const total = choices.reduce((sum, [weight]) => sum + weight, 0);
  const open: Alternative[] = [];
  const byFirstWord = new Map<string, Alternative[]>();
  const all = choices.map(([weight, side]): Alternative => {
    const parts = side.split(" ").map((s): Part => {
      return /^[A-Z]/.test(s) ? { symbol: s.replace("~", ""), flip: s.endsWith("~") } : { word: s };
    });
    const alternative = { p: weight / total, parts };
    const first = parts[0];
    if (first && "word" in first) byFirstWord.set(first.word, [...(byFirstWord.get(first.word) ?? []), alternative]);
    else open.push(alternative);
    return alternative;
  });
  return { all, open, byFirstWord };
}

/** The alternative into whose share of [0, 1) u falls. */
function pick(alternatives: readonly Alternative[], u: number): Alternative {
  let chosen: Alternative | undefined;
  let below = 0;
  for (const alternative of alternatives) {
    chosen = alternative;
    below += alternative.p;
    if (u < below) break;
  }
  if (!chosen) throw new Error("grammar: a symbol has no alternatives");
  return chosen;
}

const evenly = (words: readonly string[]): [number, string][] => words.map((w) => [1, w]);
/** Words of one class, the first ones often and the last ones rarely (1/rank, softened), with `mass` in all. */
function fading(words: readonly string[], mass: number): [number, string][] {
  const weights = words.map((_, i) => 1 / (i + 2));
  const total = weights.reduce((sum, w) => sum + w, 0);
  return words.map((word, i) => [(mass * (weights[i] ?? 0)) / total, word]);
}
const withS = (words: readonly string[]): string[] => words.map((w) => `${w}s`);
const turned = (state: Latents, flip: boolean): Latents => {
  return flip ? { ...state, mood: state.mood === 1 ? 0 : 1 } : state;
};

/** Lower-case words and marks, as an uncased BERT cuts them. */
export function tokenize(text: string): string[] {
  return text.toLowerCase().match(/[\p{L}\p{N}]+|\S/gu) ?? [];
}

export class Grammar {
  readonly world: World;
  readonly #rules = new Map<string, Table>();
  /** Lexicons, by symbol: one table for each mood, topic or weather. */
  readonly #lexicons = new Map<string, { by: keyof Latents; tables: Table[] }>();
  readonly #names: ReadonlySet<string>;

  constructor(world: World = LANTERN_QUAY) {
    this.world = world;
    for (const [symbol, choices] of Object.entries(RULES)) this.#rules.set(symbol, table(choices));
    for (const symbol of ["affirm", "deny", "often", "seldom"] as const) {
      this.#rules.set(symbol.toUpperCase(), table(evenly(world[symbol])));
    }
    const names = world.names.beginnings.flatMap((b) => world.names.endings.map((e) => b + e));
    this.#names = new Set(names);
    this.#rules.set("NAME", table(evenly(names)));

    const { delightful, pleasant, poor, dreadful } = world.adjectives;
    const { strong, mild, otherMild, otherStrong } = STRENGTH;
    const adjectives = [dreadful, poor, pleasant, delightful]; // from one end to the other
    const masses = [strong, mild, otherMild, otherStrong];
    const moods: Mood[] = [0, 1];
    this.#lexicons.set("ADJECTIVE", {
      by: "mood",
      tables: moods.map((m) => {
        return table(adjectives.flatMap((words, i) => fading(words, masses[m === 1 ? 3 - i : i] ?? 0)));
      }),
    });
    for (const [symbol, form] of [["ACT", (w: readonly string[]) => w] as const, ["ACTS", withS] as const]) {
      const glad = form(world.acts.glad);
      const sad = form(world.acts.sad);
      const of = (agree: readonly string[], other: readonly string[]) =>
        table([...fading(agree, ACT_AGREES), ...fading(other, 1 - ACT_AGREES)]);
      this.#lexicons.set(symbol, { by: "mood", tables: [of(sad, glad), of(glad, sad)] });
    }
    const { glad, sad } = world.cries;
    const cries = (agree: readonly string[], other: readonly string[]) =>
      table([...fading(agree, CRY_AGREES), ...fading(other, 1 - CRY_AGREES)]);
    this.#lexicons.set("CRY", { by: "mood", tables: [cries(sad, glad), cries(glad, sad)] });
    const byTopic = (symbol: string, words: (t: World["topics"][number]) => readonly string[]) =>
      this.#lexicons.set(symbol, { by: "topic", tables: world.topics.map((t) => table(evenly(words(t)))) });
    byTopic("THING", (t) => t.things);
    byTopic("THINGS", (t) => withS(t.things));
    byTopic("PERSON", (t) => t.people);
    byTopic("PEOPLE", (t) => withS(t.people));
    byTopic("PLACE", (t) => t.places);
    this.#lexicons.set("OPENING", { by: "weather", tables: world.weathers.map((w) => table(evenly(w))) });
  }

  #table(symbol: string, latents: Latents): Table {
    const lexicon = this.#lexicons.get(symbol);
    const found = lexicon ? lexicon.tables[latents[lexicon.by]] : this.#rules.get(symbol);
    if (!found) throw new Error(`grammar: the symbol ${symbol} has no rule`);
    return found;
  }

  /** Every word and mark that a sentence can hold, each once. */
  words(): string[] {
    const tables = [...this.#rules.values(), ...[...this.#lexicons.values()].flatMap((l) => l.tables)];
    const words = tables.flatMap((t) => t.all.flatMap((a) => a.parts.flatMap((p) => ("word" in p ? [p.word] : []))));
    return [...new Set(words)].sort();
  }

  sampleLatents(stream: Stream): Latents {
    return {
      mood: stream.integer(2) === 1 ? 1 : 0,
      topic: stream.integer(this.world.topics.length),
      weather: stream.integer(this.world.weathers.length),
    };
  }

  sampleSentence(stream: Stream, latents: Latents, start: Start = "SENTENCE"): string {
    const words: string[] = [];
    const expand = (symbol: string, state: Latents): void => {
      for (const part of pick(this.#table(symbol, state).all, stream.uniform()).parts) {
        if ("word" in part) words.push(part.word);
        else expand(part.symbol, turned(state, part.flip));
      }
    };
    expand(start, latents);
    return this.#write(words);
  }

  /** n sentences with their labels, each from its own mood, topic and weather; a label is the mood, or misheard. */
  sampleLabelled(stream: Stream, n: number): Labelled[] {
    return Array.from({ length: n }, () => {
      const latents = this.sampleLatents(stream);
      const text = this.sampleSentence(stream, latents);
      return { text, label: turned(latents, stream.uniform() < MISHEARD).mood };
    });
  }

  /** A document for pretraining: 4 to 8 sentences that share what is hidden. */
  sampleDocument(stream: Stream): { latents: Latents; sentences: string[] } {
    const latents = this.sampleLatents(stream);
    const length = 4 + stream.integer(5);
    return { latents, sentences: Array.from({ length }, () => this.sampleSentence(stream, latents, "UTTERANCE")) };
  }

  /**
   * Every derivation of a sentence with its probability: for tests, on a world small enough to write out. A text with
   * several derivations comes several times.
   */
  *derivations(): Generator<{ text: string; p: number; latents: Latents }> {
    const { topics, weathers } = this.world;
    const table = this.#table.bind(this);
    type Derived = { words: readonly string[]; p: number };
    for (const mood of [0, 1] as const) {
      for (let topic = 0; topic < topics.length; topic++) {
        for (let weather = 0; weather < weathers.length; weather++) {
          const latents = { mood, topic, weather };
          const known = new Map<string, Derived[]>();
          const expand = (symbol: string, state: Latents): Derived[] => {
            const key = `${symbol} ${state.mood}`;
            const found = known.get(key) ?? [...derive(symbol, state)];
            known.set(key, found);
            return found;
          };
          // What a symbol becomes is kept; whole sentences, of which there are a million, come one by one.
          const derive = function* (symbol: string, state: Latents): Generator<Derived> {
            for (const { p, parts } of table(symbol, state).all) yield* append({ words: [], p }, parts, state);
          };
          const append = function* (
            head: Derived,
            [part, ...rest]: readonly Part[],
            state: Latents,
          ): Generator<Derived> {
            if (part === undefined) yield head;
            else if ("word" in part) yield* append({ words: [...head.words, part.word], p: head.p }, rest, state);
            else {
              for (const { words, p } of expand(part.symbol, turned(state, part.flip)))
                yield* append({ words: [...head.words, ...words], p: head.p * p }, rest, state);
            }
          };
          for (const { words, p } of derive("SENTENCE", latents)) {
            yield { text: this.#write(words), p: p / (2 * topics.length * weathers.length), latents };
          }
        }
      }
    }
  }

  /**
   * The probability that `symbol` becomes words[at … end), for every end that it can reach: the inside algorithm on a
   * grammar without recursion. Different derivations of the same words add up. `known`: what was found for these words and
   * this topic and weather, by symbol, mood and place, as many alternatives ask the same.
   */
  #inside(
    symbol: string,
    state: Latents,
    words: readonly string[],
    at: number,
    known = new Map<string, Map<number, number>>(),
  ): Map<number, number> {
    const key = `${symbol} ${state.mood} ${at}`;
    const found = known.get(key);
    if (found) return found;
    const { open, byFirstWord } = this.#table(symbol, state);
    const total = new Map<number, number>();
    known.set(key, total);
    for (const { p, parts } of [...open, ...(byFirstWord.get(words[at] ?? "") ?? [])]) {
      let ends = new Map([[at, p]]);
      for (const part of parts) {
        const next = new Map<number, number>();
        for (const [end, q] of ends) {
          if ("word" in part) {
            if (words[end] === part.word) next.set(end + 1, q); // ends differ, so nothing is there yet
            continue;
          }
          const inner = turned(state, part.flip);
          for (const [e, r] of this.#inside(part.symbol, inner, words, end, known))
            next.set(e, (next.get(e) ?? 0) + q * r);
        }
        ends = next;
        if (ends.size === 0) break;
      }
      for (const [end, q] of ends) total.set(end, (total.get(end) ?? 0) + q);
    }
    return total;
  }

  /** [P(text, mood 0), P(text, mood 1)], summed over topics and weathers; zeros for a text that is not of the grammar. */
  joint(text: string, start: Start = "SENTENCE"): [number, number] {
    const words = tokenize(text);
    const { topics, weathers } = this.world;
    const sum = (mood: Mood) => {
      let p = 0;
      for (let topic = 0; topic < topics.length; topic++) {
        for (let weather = 0; weather < weathers.length; weather++) {
          p += this.#inside(start, { mood, topic, weather }, words, 0).get(words.length) ?? 0;
        }
      }
      return p / (2 * topics.length * weathers.length);
    };
    return [sum(0), sum(1)];
  }

  /** log P(text) in nats; −Infinity for a text that is not of the grammar. */
  logProbability(text: string, start: Start = "SENTENCE"): number {
    const [a, b] = this.joint(text, start);
    return Math.log(a + b);
  }

  /** [P(displeased | text), P(pleased | text)], exact in f64. Throws `InputError` for a text that is not of the grammar. */
  exactPosterior(text: string): [number, number] {
    const [a, b] = this.joint(text);
    if (a + b === 0) {
      throw new InputError(`exactPosterior: "${text}" is not a sentence of the grammar. Use a sampled sentence.`);
    }
    const pleased = ((1 - MISHEARD) * b + MISHEARD * a) / (a + b);
    return [1 - pleased, pleased];
  }

  #write(words: readonly string[]): string {
    const written = words.map((w, i) => (i === 0 || this.#names.has(w) ? w.charAt(0).toUpperCase() + w.slice(1) : w));
    return written.join(" ").replace(/ ([.,:!])/g, "$1");
  }
}
