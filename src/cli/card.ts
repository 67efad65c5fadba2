/**
 * @file A run's README.md: what the model is, how it was made, its numbers, and how to use it from Python. Where
 * `transformers` cannot hold the head, the card has the five lines that rebuild it. Words from data and file names are
 * inert in Markdown, HTML and YAML (P8).
 */
import { count } from "../data/tables.ts";
import { inert } from "../data/text.ts";
import { figure } from "./format.ts";
import type { FinetuneOptions } from "./options.ts";

export interface CardFacts {
  name: string;
  labels: readonly string[];
  readout: string;
  head: string;
  options: Pick<FinetuneOptions, "method" | "sampler" | "swag" | "ensemble" | "laplace">;
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
  const { metrics, options } = facts;
  const many = predictsWith(options, typeof metrics?.members === "number" ? metrics.members : 1);
  const figures = ["accuracy", "nll", "brier", "ece", "eceFloor"].filter((key) => typeof metrics?.[key] === "number");
  const shown = figures.map((key) => figure(metrics?.[key] as number));
  const rows = [
    ["start", markdown(facts.source)],
    ["method", `${methodWords(options)} (--method ${options.method}), prior precision ${markdown(facts.precision)}`],
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
    const by = many ? `, by ${many.measured}` : "";
    const on = `Measured on ${markdown(facts.measuredOn)}, ${String(metrics?.n)} examples${by}`;
    const chosen = facts.selectedOnDev ? "; θ was selected on these same examples, so the numbers flatter it" : "";
    parts.push(
      `${on}${chosen}.\n\n${table}\n\neceFloor is the ECE that a perfectly calibrated model of this confidence would show.`,
    );
  }
  parts.push(`## From the command line\n\n\`\`\`sh\nnpx priorwork predict --run . --text "…" --json\n\`\`\``);
  parts.push("## From Python");
  if (many) {
    parts.push(
      `These lines answer with model.safetensors alone, ${many.alone}: their probabilities are not those of the metrics. The command above predicts as it was measured.`,
    );
  }
  parts.push(`\`\`\`python\n${python(facts)}\n\`\`\``);
  return `${parts.join("\n\n")}\n`;
}

/** What the method is, in words; names of groups are checked, and no markup. */
function methodWords({ method, sampler, swag, ensemble, laplace }: CardFacts["options"]): string {
  switch (method) {
    case "mle":
      return "maximum likelihood";
    case "map":
      return "MAP";
    case "frozen":
      return "MAP of the head, the encoder frozen";
    case "scratch":
      return "maximum likelihood from a random start";
    case "dropout":
      return "MAP, its dropout kept on in predictions";
    case "sgld":
    case "sghmc":
      return `${method.toUpperCase()} of ${sampler?.groups.join(", ")}, from the run's mode`;
    case "swag":
      return (swag?.modes ?? 1) > 1 ? `multi-SWAG around ${swag?.modes} modes` : "SWAG around the run's mode";
    case "ensemble":
      return ensemble?.anchored
        ? `anchored ensemble, its centres drawn in ${ensemble.anchored.join(", ")}`
        : "ensemble of trainings from other seeds";
    case "rank-one":
      return "rank-one ensemble";
    case "laplace": {
      const how = { linearised: ", linearised", probit: " by probit", mc: " by draws of θ" };
      return `Laplace${laplace ? how[laplace.predictive] : ""}, of ${laplace?.groups?.join(", ") ?? "the last layer"}`;
    }
    default:
      return method satisfies never;
  }
}

/** What the run predicts with, where that is more than model.safetensors, and what that file is without it. */
function predictsWith(
  { method, ensemble, laplace }: CardFacts["options"],
  members: number,
): { measured: string; alone: string } | undefined {
  const alone = "the run's mode";
  switch (method) {
    case "mle":
    case "map":
    case "frozen":
    case "scratch":
      return undefined;
    case "dropout":
      if (members === 1) return undefined;
      return { measured: `the average over ${members} dropout masks of the one θ`, alone: "that θ without dropout" };
    case "laplace":
      if (laplace?.predictive === "probit")
        return { measured: "a closed form that is near the average over the Gaussian in posterior/", alone };
      if (laplace?.predictive === "linearised")
        return {
          measured: `the average over ${count(members, "draw")} of the logits from the Gaussian in posterior/`,
          alone,
        };
      break;
    case "sgld":
    case "sghmc":
    case "swag":
    case "ensemble":
    case "rank-one":
      break;
    default:
      return method satisfies never;
  }
  const measured =
    members === 1 ? "its one member, the θ in posterior/" : `the average over ${members} members, the θ in posterior/`;
  if (method === "rank-one") return { measured, alone: "the weights that its members share" };
  return { measured, alone: method === "ensemble" && !ensemble?.anchored ? "its first member" : alone };
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
