/**
 * @file BERT's WordPiece tokenizer over `@huggingface/tokenizers`, from `tokenizer.json` or from a bare `vocab.txt`.
 * The library splits text into word pieces; special tokens, pairs and truncation are done here, because a
 * `tokenizer.json` often carries somebody's old truncation and padding, which must not decide what a model sees.
 */

import { Tokenizer } from "@huggingface/tokenizers";
import { InputError } from "../errors.ts";
import { isObject, type JsonObject, parseJson } from "./json.ts";
import { inert, quote } from "./text.ts";

/** A file that somebody has read: its name for messages, its text. */
export interface TextFile {
  name: string;
  text: string;
}

/** One of `tokenizer` (tokenizer.json) and `vocab` (vocab.txt); `config` (tokenizer_config.json) if there is one. */
export interface TokenizerFiles {
  tokenizer?: TextFile;
  vocab?: TextFile;
  config?: TextFile;
}

export interface Encoded {
  /** [CLS] text [SEP], or [CLS] text [SEP] pair [SEP] */
  ids: number[];
  /** 0 up to the first [SEP] and with it, then 1 */
  typeIds: number[];
  /** True if word pieces were cut to keep to `maxLength`. */
  truncated: boolean;
}

const SPECIALS = ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"] as const;
type Special = (typeof SPECIALS)[number];

/** A vocabulary above this is a mistake or an attack (the largest BERTs have half a million). */
const LARGEST_ID = 10_000_000;

/** CJK ideographs outside the basic plane; the library puts spaces around the others only. */
const ASTRAL_CJK = /[\u{20000}-\u{2a6df}\u{2a700}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;

export class BertTokenizer {
  /** Ids of the special tokens. */
  readonly cls: number;
  readonly sep: number;
  readonly pad: number;
  readonly mask: number;
  readonly unk: number;
  /** The number of ids: the highest one and 1. */
  readonly vocabSize: number;
  /** What a folder needs to make this tokenizer again: a `tokenizer.json`. */
  readonly json: JsonObject;
  readonly #library: Tokenizer;
  readonly #tokens: (string | undefined)[];
  readonly #ids: Map<string, number>;
  readonly #lowercase: boolean;
  readonly #spaceCjk: boolean;

  private constructor(json: JsonObject, vocabulary: Map<string, number>, specials: Record<Special, number>) {
    this.json = json;
    this.#ids = vocabulary;
    this.#tokens = [];
    for (const [token, id] of vocabulary) this.#tokens[id] = token;
    this.vocabSize = this.#tokens.length;
    this.cls = specials["[CLS]"];
    this.sep = specials["[SEP]"];
    this.pad = specials["[PAD]"];
    this.mask = specials["[MASK]"];
    this.unk = specials["[UNK]"];
    const normalizer = json.normalizer as JsonObject;
    this.#lowercase = normalizer.lowercase === true;
    this.#spaceCjk = normalizer.handle_chinese_chars === true;
    this.#library = new Tokenizer({ ...json, truncation: null, padding: null, post_processor: null }, {});
  }

  /** From files that were read already, so that a page can do it too. InputError: broken, or not BERT's WordPiece. */
  static from({ tokenizer, vocab, config }: TokenizerFiles): BertTokenizer {
    const settings = config === undefined ? {} : parseJson(config.text, config.name);
    if (tokenizer !== undefined) return fromTokenizerJson(parseJson(tokenizer.text, tokenizer.name), tokenizer.name);
    if (vocab !== undefined) return fromVocab(vocab, settings, config?.name ?? "tokenizer_config.json");
    throw new InputError("tokenizer: no file given (expected tokenizer.json or vocab.txt). Name one.");
  }

  /** For the two builders below; use `BertTokenizer.from`. */
  static build(json: JsonObject, vocabulary: Map<string, number>, specials: Record<Special, number>): BertTokenizer {
    return new BertTokenizer(json, vocabulary, specials);
  }

  /** The word pieces of a text, without special tokens around it (those written in the text count as themselves). */
  pieces(text: string): number[] {
    // Two places where the library's JavaScript differs from the Rust original: a capital sigma at a word's end
    // becomes σ there, and rare CJK ideographs stand alone too.
    if (this.#lowercase) text = text.replaceAll("Σ", "σ");
    if (this.#spaceCjk) text = text.replace(ASTRAL_CJK, " $& ");
    return this.#library.tokenize(text).map((token: string) => this.#ids.get(token) ?? this.unk);
  }

  /**
   * A text, or a pair, with its special tokens. Above `maxLength` (special tokens included) word pieces are cut off
   * the end, of a pair's longer text first, as Hugging Face's `longest_first`. RangeError: no room for a word piece.
   */
  encode(text: string, pair?: string, { maxLength = Number.POSITIVE_INFINITY } = {}): Encoded {
    const a = this.pieces(text);
    const b = pair === undefined ? undefined : this.pieces(pair);
    const room = maxLength - (b === undefined ? 2 : 3);
    if (room < (b === undefined ? 1 : 2)) {
      throw new RangeError(`maxLength: ${maxLength} leaves no room for a word piece beside the special tokens`);
    }
    const whole = a.length + (b?.length ?? 0);
    const [first, second] = longestFirst(a.length, b?.length ?? 0, room);
    const ids = [this.cls, ...a.slice(0, first), this.sep];
    const typeIds = new Array<number>(ids.length).fill(0);
    if (b !== undefined) {
      ids.push(...b.slice(0, second), this.sep);
      while (typeIds.length < ids.length) typeIds.push(1);
    }
    return { ids, typeIds, truncated: first + second < whole };
  }

  /** The id of a token exactly as in the vocabulary, or undefined. */
  id(token: string): number | undefined {
    return this.#ids.get(token);
  }

  /** The token of an id as in the vocabulary (`##` kept), or undefined. */
  token(id: number): string | undefined {
    return this.#tokens[id];
  }

  /** Text again from ids, without special tokens: for people to read, not the original. */
  decode(ids: ArrayLike<number>): string {
    const special = new Set([this.cls, this.sep, this.pad, this.mask, this.unk]);
    special.delete(this.mask);
    special.delete(this.unk);
    const kept = Array.from(ids).filter((id) => !special.has(id));
    return kept.length === 0 ? "" : this.#library.decode(kept, { skip_special_tokens: false });
  }
}

/** How many pieces of each text stay: the longer one is cut first, then both to half (the longer keeps the odd one). */
function longestFirst(first: number, second: number, room: number): [number, number] {
  if (first + second <= room) return [first, second];
  const swap = first > second;
  const short = swap ? second : first;
  const long = swap ? first : second;
  const half = Math.floor(room / 2);
  const kept: [number, number] = short <= half ? [short, Math.min(long, room - short)] : [half, room - half];
  return swap ? [kept[1], kept[0]] : kept;
}

function fromTokenizerJson(json: JsonObject, name: string): BertTokenizer {
  const shown = inert(name);
  const refuse = (what: string): never => {
    throw new InputError(`${shown}: ${what}. Use a BERT model's tokenizer files.`);
  };
  const type = (key: string) => (isObject(json[key]) ? String((json[key] as JsonObject).type) : "none");
  if (!isObject(json.model)) return refuse('no "model" (expected a WordPiece tokenizer)');
  const { model } = json;
  // Files of before 2021 leave the type out of the model.
  const kind = model.type ?? (model.max_input_chars_per_word === undefined ? "none" : "WordPiece");
  if (kind !== "WordPiece") return refuse(`not a WordPiece tokenizer (found ${quote(String(kind))})`);
  const prefix = model.continuing_subword_prefix ?? "##";
  if (prefix !== "##") return refuse(`continuing_subword_prefix is ${quote(String(prefix))} (expected "##")`);
  if (model.unk_token !== undefined && model.unk_token !== "[UNK]") {
    return refuse(`unk_token is ${quote(String(model.unk_token))} (expected "[UNK]")`);
  }
  const chars = model.max_input_chars_per_word ?? 100;
  // Word pieces are sought in quadratic time, so a limit far above BERT's 100 would let a text stall the program.
  if (typeof chars !== "number" || !Number.isInteger(chars) || chars < 1 || chars > 1000) {
    return refuse(`max_input_chars_per_word is ${quote(String(chars))} (expected a whole number from 1 to 1000)`);
  }
  if (type("normalizer") !== "BertNormalizer") {
    return refuse(`normalizer is ${quote(type("normalizer"))} (expected "BertNormalizer")`);
  }
  if (type("pre_tokenizer") !== "BertPreTokenizer") {
    return refuse(`pre_tokenizer is ${quote(type("pre_tokenizer"))} (expected "BertPreTokenizer")`);
  }
  checkPostProcessor(json.post_processor, refuse);
  if (!isObject(model.vocab)) return refuse('no "vocab" in its model');

  const vocabulary = new Map<string, number>();
  const seen = new Map<number, string>();
  const add = (token: string, id: unknown) => {
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id > LARGEST_ID) {
      return refuse(`the id of token ${quote(token)} is ${quote(String(id))} (expected a whole number from 0)`);
    }
    const other = seen.get(id);
    if (other !== undefined && other !== token)
      return refuse(`tokens ${quote(other)} and ${quote(token)} share id ${id}`);
    if ((vocabulary.get(token) ?? id) !== id) return refuse(`token ${quote(token)} has two ids`);
    seen.set(id, token);
    vocabulary.set(token, id);
  };
  for (const [token, id] of Object.entries(model.vocab)) add(token, id);
  const added = json.added_tokens ?? [];
  if (!Array.isArray(added)) return refuse('"added_tokens" is not a list');
  for (const token of added as unknown[]) {
    if (!isObject(token) || typeof token.content !== "string" || token.content === "") {
      return refuse('an entry of "added_tokens" has no content');
    }
    add(token.content, token.id);
  }
  const specials = specialIds(vocabulary, shown);
  const complete = {
    ...json,
    added_tokens: added,
    decoder: isObject(json.decoder) && json.decoder.type === "WordPiece" ? json.decoder : DECODER,
    model: {
      ...model,
      type: "WordPiece",
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: chars,
    },
  };
  return BertTokenizer.build(complete, vocabulary, specials);
}

/** Only [CLS] A [SEP] (B [SEP]) is built in `encode`; a file that asks for another frame is refused. */
function checkPostProcessor(value: unknown, refuse: (what: string) => never): void {
  if (!isObject(value)) return;
  if (value.type === "BertProcessing") return;
  if (value.type !== "TemplateProcessing") refuse(`post_processor is ${quote(String(value.type))} (expected BERT's)`);
  const frame = (list: unknown) =>
    (Array.isArray(list) ? list : [])
      .map((part: unknown) => {
        const entry = isObject(part) ? (part.SpecialToken ?? part.Sequence) : undefined;
        return isObject(entry) ? `${String(entry.id)}:${String(entry.type_id)}` : "?";
      })
      .join(" ");
  const single = frame(value.single);
  if (single !== "[CLS]:0 A:0 [SEP]:0")
    refuse(`post_processor frames a text as ${quote(single)} (expected [CLS] A [SEP])`);
  const pair = frame(value.pair);
  if (value.pair !== undefined && pair !== "[CLS]:0 A:0 [SEP]:0 B:1 [SEP]:1") {
    refuse(`post_processor frames a pair as ${quote(pair)} (expected [CLS] A [SEP] B [SEP], types 0 and 1)`);
  }
}

function specialIds(vocabulary: Map<string, number>, shown: string): Record<Special, number> {
  const ids = {} as Record<Special, number>;
  const missing = SPECIALS.filter((token) => !vocabulary.has(token));
  if (missing.length > 0) {
    const list = missing.join(", ");
    throw new InputError(
      `${shown}: ${list} missing from the vocabulary of ${vocabulary.size} tokens. Is this a BERT's vocabulary?`,
    );
  }
  for (const token of SPECIALS) ids[token] = vocabulary.get(token) ?? 0;
  return ids;
}

const DECODER = { type: "WordPiece", prefix: "##", cleanup: true };

/** BERT's `vocab.txt`: a token a line, its id the line's number from 0. */
function fromVocab({ name, text }: TextFile, settings: JsonObject, settingsName: string): BertTokenizer {
  const shown = inert(name);
  if (text.trim() === "") throw new InputError(`${shown}: the file is empty (expected a token a line).`);
  const vocabulary = new Map<string, number>();
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  lines.forEach((line, id) => {
    // As in BERT's own reader a line end goes, other white space stays: some vocabularies hold U+2028 and the like.
    const token = line.endsWith("\r") ? line.slice(0, -1) : line;
    if (token === "") throw new InputError(`${shown}:${id + 1}: an empty line, which would be a token. Remove it.`);
    const before = vocabulary.get(token);
    if (before !== undefined) {
      throw new InputError(
        `${shown}:${id + 1}: token ${quote(token)} stands on line ${before + 1} already. Keep one of them.`,
      );
    }
    vocabulary.set(token, id);
  });
  const specials = specialIds(vocabulary, shown);
  const lowercase = flag(settings, "do_lower_case", true, settingsName);
  const normalizer = {
    type: "BertNormalizer",
    clean_text: true,
    handle_chinese_chars: flag(settings, "tokenize_chinese_chars", true, settingsName),
    strip_accents: settings.strip_accents == null ? null : flag(settings, "strip_accents", false, settingsName),
    lowercase,
  };
  const special = (id: Special, type_id: number) => ({ SpecialToken: { id, type_id } });
  const sequence = (id: "A" | "B", type_id: number) => ({ Sequence: { id, type_id } });
  const named = (id: Special) => [id, { id, ids: [specials[id]], tokens: [id] }] as const;
  const single = [special("[CLS]", 0), sequence("A", 0), special("[SEP]", 0)];
  const json = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [...SPECIALS]
      .sort((a, b) => specials[a] - specials[b])
      .map((content) => ({
        id: specials[content],
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      })),
    normalizer,
    pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: {
      type: "TemplateProcessing",
      single,
      pair: [...single, sequence("B", 1), special("[SEP]", 1)],
      special_tokens: Object.fromEntries([named("[CLS]"), named("[SEP]")]),
    },
    decoder: DECODER,
    model: {
      type: "WordPiece",
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: 100,
      // fromEntries, not assignment: a token may be called __proto__.
      vocab: Object.fromEntries(vocabulary),
    },
  };
  return BertTokenizer.build(json, vocabulary, specials);
}

function flag(settings: JsonObject, key: string, otherwise: boolean, name: string): boolean {
  const value = Object.hasOwn(settings, key) ? settings[key] : undefined;
  if (value === undefined || value === null) return otherwise;
  if (typeof value === "boolean") return value;
  throw new InputError(`${inert(name)}: ${key} is ${quote(String(value))} (expected true or false). Correct it.`);
}
