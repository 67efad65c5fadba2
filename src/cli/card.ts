/**
 * @file A run's README.md: what the model is, how it was made, its numbers, and how to use it from Python. Where
 * `transformers` cannot hold the head, the card has the five lines that rebuild it. Words from data and file names are
 * inert in Markdown, HTML and YAML (P8).
 */
import { count } from "../data/tables.ts";
import { inert } from "../data/text.ts";
import { figure } from "./format.ts";

export interface CardFacts {
  name: string;
  labels: readonly string[];
  readout: string;
  head: string;
  method: string;
  precision: string;
  source: string;
  train: { file: string; rows: number };
  steps: number;
  adapter: string;
  version: string;
  maxLength: number;
  /** True: the folder is a BertForSequenceClassification that `transformers` opens as it is. */
  plain: boolean;
  metrics: Record<string, unknown> | undefined;
  /** What the metrics were measured on. */
  measuredOn: string;
  selectedOnDev: boolean;
}

/** Text from outside as Markdown: no character of it is markup, HTML, a link or a line end. */
export function markdown(text: string): string {
  const entity = (c: string) => `&#${c.charCodeAt(0)};`;
  return (
    inert(text)
      .replace(/[\\`*_{}[\]()#!|<>&~$@]/g, entity)
      .replace(/^[-+=]/, entity)
      // What makes a link of bare text.
      .replace(/:(?=\/\/)|(?<=www)\./gi, entity)
  );
}

export function modelCard(facts: CardFacts): string {
  const { metrics } = facts;
  const figures = ["accuracy", "nll", "brier", "ece", "eceFloor"].filter((key) => typeof metrics?.[key] === "number");
  const shown = figures.map((key) => figure(metrics?.[key] as number));
  const rows = [
    ["start", markdown(facts.source)],
    ["method", `${facts.method}, prior precision ${markdown(facts.precision)}`],
    ["readout, head", `${markdown(facts.readout)}, ${markdown(facts.head)}`],
    [
      "trained on",
      `${markdown(facts.train.file)}, ${count(facts.train.rows, "example")}, ${count(facts.steps, "step")}`,
    ],
    ["labels", facts.labels.slice(0, 20).map(markdown).join(", ") + (facts.labels.length > 20 ? ", …" : "")],
    ["computed on", markdown(facts.adapter)],
  ];
  const parts = [
    "---\nlibrary_name: transformers\npipeline_tag: text-classification\ntags:\n- bert\n- priorwork\n---",
    `# ${markdown(facts.name)}`,
    `Fine-tuned by priorwork ${facts.version}: training climbed the log-posterior log p(θ|X) = log p(X|θ) + log p(θ) up to a constant. Everything that is needed to repeat it is in run.json.`,
    ["| | |", "|---|---|", ...rows.map((row) => `| ${row.join(" | ")} |`)].join("\n"),
  ];
  if (figures.length > 0) {
    const table = [figures, figures.map(() => "---"), shown].map((row) => `| ${row.join(" | ")} |`).join("\n");
    const on = `Measured on ${markdown(facts.measuredOn)}, ${String(metrics?.n)} examples`;
    const chosen = facts.selectedOnDev ? "; θ was selected on these same examples, so the numbers flatter it" : "";
    parts.push(
      `${on}${chosen}.\n\n${table}\n\neceFloor is the ECE that a perfectly calibrated model of this confidence would show.`,
    );
  }
  parts.push(`## From the command line\n\n\`\`\`sh\nnpx priorwork predict --run . --text "…" --json\n\`\`\``);
  parts.push(`## From Python\n\n\`\`\`python\n${python(facts)}\n\`\`\``);
  return `${parts.join("\n\n")}\n`;
}

/** The lines of Python that give `logits` for `text`: in dropout-free evaluation, as this program computes them. */
export function python({
  plain,
  readout,
  head,
  maxLength,
}: Pick<CardFacts, "plain" | "readout" | "head" | "maxLength">): string {
  const tokens = `tok(text, return_tensors="pt", truncation=True, max_length=${maxLength})`;
  if (plain) {
    return [
      "from transformers import AutoTokenizer, AutoModelForSequenceClassification",
      'tok, model = AutoTokenizer.from_pretrained("."), AutoModelForSequenceClassification.from_pretrained(".")',
      `logits = model(**${tokens}).logits`,
    ].join("\n");
  }
  const linear = (x: string, name: string) =>
    `${x} @ w["priorwork.head${name}.weight"].T + w["priorwork.head${name}.bias"]`;
  const hidden = head.startsWith("mlp:");
  // The pooler with an MLP is the only use of the pooler here: with a linear head the folder is plain.
  const names = `import torch, transformers; from safetensors.torch import load_file`;
  const load = `tok, bert, w = transformers.AutoTokenizer.from_pretrained("."), transformers.BertModel.from_pretrained("."), load_file("model.safetensors")`;
  const run = `out = bert(**${tokens}, output_hidden_states=True)`;
  const vector = `x = ${readoutPython(readout)}`;
  const logits = hidden
    ? `logits = ${linear(`torch.nn.functional.gelu(${linear("x", ".hidden")})`, ".output")}`
    : `logits = ${linear("x", "")}`;
  return [names, load, run, vector, logits].join("\n");
}

/** A readout of one unpadded text, `out` being BertModel's output: [1, width]. */
function readoutPython(readout: string): string {
  const pick = (x: string, how: string) =>
    how === "mean" ? `${x}.mean(1)` : how === "max" ? `${x}.amax(1)` : `${x}[:, 0]`;
  if (readout === "pooler") return "out.pooler_output";
  const last = /^last(\d+)-(concat|sum)(?:-(cls|mean|max))?$/.exec(readout);
  if (last === null) return pick("out.last_hidden_state", readout);
  const [, k, formula, how = "cls"] = last;
  const parts = `[${pick("h", how)} for h in out.hidden_states[-${k}:]]`;
  return formula === "concat" ? `torch.cat(${parts}, 1)` : `sum(${parts})`;
}
