/**
 * @file The word pieces of the embedded default: a few hundred, by rule rather than by counting, so that a reader can
 * see why a word is cut where it is. Plurals and third persons end in ##s, adjectives such as joy ##ous or heaven ##ly
 * are a stem and an ending, a name is two pieces, every other word is whole; single letters catch what is left, so that
 * no text in plain English is [UNK].
 */
import { type Grammar, tokenize } from "./grammar.ts";

export const SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] as const;

const ENDINGS = ["ful", "ous", "ing", "less", "ly"];
const MARKS = [".", ",", "!", "?", "'", "-", ":", ";"];
const LETTERS = [..."abcdefghijklmnopqrstuvwxyz"];
const DIGITS = [..."0123456789"];

/** The vocabulary for a grammar's words; the id of a piece is its place. */
export function buildVocabulary(grammar: Grammar): string[] {
  const words = grammar.words().filter((w) => /^[a-z]+$/.test(w));
  const known = new Set(words);
  const { beginnings, endings } = grammar.world.names;
  const names = new Set(beginnings.flatMap((b) => endings.map((e) => b + e)));
  const adjectives = new Set(Object.values(grammar.world.adjectives).flat());
  const whole = new Set<string>(beginnings);
  const continued = new Set(endings);
  for (const word of words) {
    if (names.has(word)) continue;
    const ending = adjectives.has(word)
      ? ENDINGS.find((e) => word.endsWith(e) && word.length - e.length >= 3)
      : undefined;
    if (word.endsWith("s") && known.has(word.slice(0, -1))) {
      continued.add("s"); // a plural, or a verb's third person: the stem is a word of its own
    } else if (ending !== undefined) {
      whole.add(word.slice(0, -ending.length));
      continued.add(ending);
    } else whole.add(word);
  }
  const pieces = [
    ...MARKS,
    ...DIGITS,
    ...LETTERS,
    ...DIGITS.map((d) => `##${d}`),
    ...LETTERS.map((l) => `##${l}`),
    ...[...whole].sort(),
    ...[...continued].sort().map((c) => `##${c}`),
  ];
  return [...SPECIAL, ...new Set(pieces)];
}

/** The longest piece first, again and again (WordPiece); [UNK] for a word that cannot be cut into pieces. */
export function wordPieces(text: string, vocabulary: ReadonlySet<string>): string[] {
  return tokenize(text).flatMap((word) => {
    const pieces: string[] = [];
    let start = 0;
    while (start < word.length) {
      let end = word.length;
      const piece = () => (start > 0 ? "##" : "") + word.slice(start, end);
      while (end > start && !vocabulary.has(piece())) end--;
      if (end === start) return ["[UNK]"];
      pieces.push(piece());
      start = end;
    }
    return pieces;
  });
}
