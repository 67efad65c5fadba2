/**
 * @file The commands and their flags, and how a command ends: an exit code, and one line on stderr when it fails.
 * Commander splits the arguments and writes the help; values are checked by options.ts, so that every message has one
 * form. A command's own code is loaded when it is asked for: `--help` waits for no device.
 */
import { Command, CommanderError, Option } from "commander";
import { inert, nearest, quote } from "../data/text.ts";
import { InputError, PriorworkError } from "../errors.ts";
import { BENCHES } from "./bench.ts";
import type { Io } from "./io.ts";
import type { RawFlags } from "./options.ts";
import { VERSION } from "./version.ts";

/** A command's work: its words (not flags), its flags, the world. */
type Run = (words: readonly string[], raw: RawFlags, io: Io) => Promise<void>;

/** Runs one command line, without the program's name. Never throws; gives the exit code. */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  const program = commands(io);
  try {
    if (argv.length === 0) {
      throw new InputError(`priorwork: no command (expected ${names(program)}). Run priorwork --help.`);
    }
    await program.parseAsync([...argv], { from: "user" });
    return 0;
  } catch (error) {
    return report(error, program, argv, io);
  }
}

function names(program: Command): string {
  return program.commands.map((command) => command.name()).join(", ");
}

/** One line on stderr, and the exit code. */
function report(error: unknown, program: Command, argv: readonly string[], io: Io): number {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return 0;
    io.stderr.write(`${inert(usageMessage(error, program, argv))}\n`);
    return 2;
  }
  return reportFailure(error, io);
}

/** One line on stderr for what a command threw, and the exit code. With DEBUG its other lines and its stack. */
export function reportFailure(error: unknown, io: Pick<Io, "stderr" | "env">): number {
  const known = error instanceof PriorworkError;
  const message = error instanceof Error ? error.message : String(error);
  const [first = "", ...rest] = message.split("\n");
  const line = known ? first : `a bug of priorwork: ${first}. Please report it with the output of DEBUG=1.`;
  const more = known && rest.length > 0 && !io.env.DEBUG ? " (DEBUG=1 shows more)" : "";
  io.stderr.write(`${inert(line)}${more}\n`);
  if (io.env.DEBUG) {
    if (known && rest.length > 0) io.stderr.write(`${rest.map(inert).join("\n")}\n`);
    const stack = error instanceof Error ? (error.stack ?? "").split("\n").filter((l) => /^\s+at /.test(l)) : [];
    io.stderr.write(`${stack.map(inert).join("\n")}\n`);
  }
  return known ? error.exitCode : 1;
}

/** What Commander says, in our form: the flag or command, what is wrong, the nearest one that exists. */
function usageMessage(error: CommanderError, program: Command, argv: readonly string[]): string {
  const word = argv.find((a) => program.commands.some((c) => c.name() === a));
  const command = program.commands.find((c) => c.name() === word) ?? program;
  const help = command === program ? "priorwork --help" : `priorwork ${command.name()} --help`;
  const named = /'([^']*)'/.exec(error.message)?.[1] ?? "";
  const flags = command.options.flatMap((option) => option.long ?? []);
  switch (error.code) {
    case "commander.unknownOption": {
      const flag = named.split("=", 1)[0] ?? "";
      const near = nearest(flag, flags);
      return `${flag}: unknown flag. ${near === undefined ? "" : `Did you mean ${near}? `}${help} lists all.`;
    }
    case "commander.optionMissingArgument": {
      const flag = named.split(/[ ,|]+/).find((part) => part.startsWith("--")) ?? named;
      const wanted = /[<[]([^>\]]+)[>\]]/.exec(named)?.[1] ?? "a value";
      return `${flag}: a value is missing (expected ${flag} ${wanted}). Give one.`;
    }
    case "commander.unknownCommand": {
      const asked = argv.find((a) => !a.startsWith("-")) ?? named;
      const near = nearest(
        asked,
        program.commands.map((c) => c.name()),
      );
      const hint = near === undefined ? "Run priorwork --help." : `Did you mean ${near}?`;
      return `${quote(asked)}: unknown command (expected ${names(program)}). ${hint}`;
    }
    case "commander.excessArguments":
      return `${command.name()}: words that belong to no flag (found ${quote(command.args.join(" "))}). Quote a text that has spaces; ${help} shows an example.`;
    case "commander.missingArgument":
      return `${command.name()}: a text is missing (expected ${named === "" ? "one" : named.toUpperCase()}). ${help} shows an example.`;
    default:
      return `${inert(error.message.replace(/^error: /, ""))}. ${help} lists all flags.`;
  }
}

function commands(io: Io): Command {
  const program = new Command("priorwork")
    .description("Fine-tunes BERT by climbing its log-posterior: log p(θ|X) = log p(X|θ) + log p(θ) − log p(X).")
    .version(VERSION, "--version")
    .addHelpText(
      "after",
      "\nExample:\n  priorwork finetune --model DIR --train train.tsv --dev dev.tsv --out runs/first",
    );

  const add = (usage: string, description: string, example: string, run: Run): Command => {
    const command = program
      .command(usage)
      .description(description)
      .addHelpText("after", `\nExample:\n  ${example}`)
      .action(() => run(command.args, command.opts(), io));
    return command;
  };

  const finetune = add(
    "finetune",
    "Fine-tunes a model on labelled texts and writes a run folder.",
    "priorwork finetune --model DIR --train train.tsv --dev dev.tsv --method map --prior-precision encoder=1000,head=1 \\\n      --readout mean --epochs 10 --out runs/first",
    async (_, raw, at) => (await import("./finetune.ts")).finetune(raw, at),
  )
    .option("--model <DIR>", "a Hugging Face folder of a BERT: config.json, model.safetensors, tokenizer files")
    .option("--train <FILE>", "labelled texts, .tsv or .jsonl")
    .option("--dev <FILE>", "labelled texts to measure on, never trained on")
    .option("--task <TASK>", "classify (default)")
    .option(
      "--method <METHOD>",
      "mle | map (default) | frozen | scratch | dropout | sgld | sghmc | swag | ensemble | rank-one | laplace",
    )
    .option("--prior-precision <G=V,…>", "by group: a number ≥ 0, or inf (frozen); default encoder=300,head=1")
    .option(
      "--prior <WHAT>",
      "a file of priorwork prior, laplace or student-t[:NU]; of what a file covers --prior-precision is a factor on its precisions (default 1); of the others it is 1/variance, of a Student-t 1/scale²",
    )
    .option("--readout <NAME>", "pooler (default, where there is one) | cls | mean | max | last4-concat | last4-sum")
    .option("--head <HEAD>", "linear (default) or mlp:H, one hidden layer of H channels")
    .option("--epochs <N>", "passes over the training table (default 3); 0 only evaluates and saves")
    .option("--batch <N>", "sequences that go through the model at once (default 16)")
    .option("--accumulate <K>", "batches to a step (default 1)")
    .option("--lr <RATE>", "learning rate (default 5e-5)")
    .option("--head-lr <RATE>", "learning rate of the head (default 1e-3)")
    .option("--warmup <SHARE>", "share of the steps that warm up (default 0.1)")
    .option("--schedule <NAME>", "linear (default) | cosine | constant")
    .option("--clip <NORM>", "largest gradient norm (default: none)")
    .option("--optimizer <NAME>", "adam (default) | adamw | sgd")
    .option("--weight-decay <W>", "AdamW's decoupled decay, which is not a prior (default 0.01 with adamw)")
    .option("--dropout <P>", "instead of config.json's, everywhere")
    .option(
      "--mixout <P>",
      "in each step swap weights of the encoder for their pretrained values with probability P: a prior of its own (encoder=0 then)",
    )
    .option(
      "--r-drop <ALPHA>",
      "run every batch twice under two dropout masks and let predictions that differ cost (Liang et al. 2021): a regulariser, not a prior",
    )
    .option("--seed <N>", "names every random draw of the run (default 0)")
    .option("--no-shuffle", "batches in the table's order")
    .option(
      "--members <S>",
      "sub-models that predict together, with a method that has them (default 16; ensemble: 5, rank-one: 4, draws of logits: 64)",
    )
    .option(
      "--anchored [GROUPS]",
      "ensemble: each member's prior and data are perturbed; centres drawn in GROUPS (default head)",
    )
    .option("--member-layers <WHICH>", "rank-one: linear layers with members: head (default), or all of the model's")
    .option("--member-precision <V>", "rank-one: how closely members stay to the shared weights (default 100)")
    .option("--sample <GROUPS>", "sgld, sghmc: what is sampled (default head); the rest stays at the mode")
    .option(
      "--sample-lr <H>",
      "sgld, sghmc: step size on the mean loss (default: what a linear head's curvature allows; else .02 and .005)",
    )
    .option("--temperature <T>", "sgld, sghmc, swag, laplace: of the whole posterior (default 1)")
    .option("--likelihood-temperature <T>", "laplace, sgld, sghmc: of the likelihood alone (default 1)")
    .option("--temperature-sweep <T,…>", "measures these temperatures too, on dev, beside the one that the run keeps")
    .option("--structure <NAME>", "laplace: of the covariance: full (default, the last layer's), diagonal or kronecker")
    .option(
      "--laplace-groups <GROUPS>",
      "laplace: groups that have one, diagonal (default), or kronecker, which is nearer and larger",
    )
    .option(
      "--predictive <NAME>",
      "laplace: linearised, draws of the logits (default; of groups a backward for every text and class), probit, one member in closed form, or mc, draws of θ",
    )
    .option("--laplace-memory <MB>", "laplace: most memory for the curvature (default 100)")
    .option(
      "--burn-in <N>",
      "sgld, sghmc: steps before the first draw (default: 500; of a head until the start is forgotten thrice, at most 3,000)",
    )
    .option(
      "--thin <N>",
      "sgld, sghmc: steps from draw to draw (default: 50; of a head as before the first draw, at most 300)",
    )
    .option("--chains <N>", "sgld, sghmc: chains, which share the members (default 2; 1 for one member)")
    .option("--friction <A>", "sghmc: share of the velocity that a step loses (default .1)")
    .option("--resample <K>", "sghmc: steps after which velocities are drawn anew (default: only at the start)")
    .option(
      "--cycles <M>",
      "sgld, sghmc: step sizes that fall to 0 and start again, M times a chain; draws are of each cycle's last part (default: one size)",
    )
    .option("--exploration <P>", "--cycles: share of a cycle that looks for a mode, without noise (default .5)")
    .option("--points <N>", "swag: points of the path that training goes on along (default 20)")
    .option("--every <N>", "swag: steps from point to point (default an epoch)")
    .option("--rank <K>", "swag: deviations kept, each as long as θ (default 10)")
    .option("--modes <M>", "swag: trainings that differ by seed, each with its Gaussian (default 1)")
    .option("--evaluate <WHEN>", "on dev: last (default), every epoch, or each K steps")
    .option("--select <WHICH>", "the θ that is saved: last (default), or best by NLL on dev")
    .option("--out <DIR>", "the run folder (default runs/TABLE-METHOD)")
    .option("--resume", "continue the run in --out from its last checkpoint")
    .option("--overwrite", "replace the run in --out");

  const evaluate = add(
    "evaluate",
    "Measures a run, or a fine-tuned Hugging Face folder, on labelled texts.",
    "priorwork evaluate --run runs/first --data test.tsv --ood other.tsv --temperature-from kept.tsv --charts charts --json",
    async (_, raw, at) => (await import("./evaluate.ts")).evaluateCommand(raw, at),
  )
    .option("--run <DIR>", "a run folder, or a Hugging Face folder of a fine-tuned BERT")
    .option("--data <FILE>", "labelled texts, .tsv or .jsonl")
    .option("--ood <FILE>", "texts of another domain: does uncertainty tell them apart (AUROC)?")
    .option("--temperature-from <FILE>", "labelled texts, neither trained on nor in --data, to fit a temperature on")
    .option("--charts <DIR>", "write reliability, coverage and uncertainty there, and a sampler's trace, .svg each")
    .option("--overwrite", "replace charts in --charts")
    .option("--batch <N>", "sequences at once (default 32); a dropout run's masks, and so its answers, depend on it")
    .option("--members <S>", "sub-models that predict together");

  const predict = add(
    "predict",
    "Labels texts, with probabilities and what they leave open.",
    'priorwork predict --run runs/first --text "a gorgeous, witty movie" --json',
    async (_, raw, at) => (await import("./predict.ts")).predict(raw, at),
  )
    .option("--run <DIR>", "a run folder, or a Hugging Face folder of a fine-tuned BERT")
    .addOption(textsOption("a text; may be given several times"))
    .option("--data <FILE>", "texts, .tsv or .jsonl")
    .option("--batch <N>", "sequences at once (default 32); a dropout run's masks, and so its answers, depend on it")
    .option("--members <S>", "sub-models that predict together");

  const embed = add(
    "embed",
    "Gives each text one vector.",
    'priorwork embed --model DIR --text "two ferries" --readout mean --normalize --json',
    async (_, raw, at) => (await import("./embed.ts")).embed(raw, at),
  )
    .option("--model <DIR>", "a Hugging Face folder of a BERT, or a run folder")
    .addOption(textsOption("a text; may be given several times"))
    .option("--data <FILE>", "texts, .tsv or .jsonl")
    .option("--readout <NAME>", "mean (default) | pooler | cls | max | last4-concat | last4-sum")
    .option("--normalize", "vectors of length 1")
    .option("--batch <N>", "sequences at once (default 32)")
    .option("--out <FILE>", "write .jsonl, or .npy (float32, a row a text)")
    .option("--overwrite", "replace --out");

  add(
    "fill-mask <TEXT>",
    "Says which tokens fit where a text has [MASK].",
    'priorwork fill-mask --model DIR "the cat sat on the [MASK]." --top 5',
    async (words, raw, at) => (await import("./fill-mask.ts")).fillMask(words[0] ?? "", raw, at),
  )
    .option("--model <DIR>", "a Hugging Face folder of a BERT with its masked-language-model head")
    .option("--top <N>", "tokens a mask (default 5)")
    .option("--json", "one JSON document on stdout, and nothing else there");

  const pretrain = add(
    "pretrain",
    "Pretrains on plain text: a sentence a line, an empty line between documents (masked tokens and next sentence).",
    "priorwork pretrain --text corpus.txt --model DIR --epochs 1 --out runs/domain",
    async (_, raw, at) => (await import("./pretrain.ts")).pretrain(raw, at),
  )
    .option("--text <FILE>", "a sentence a line, an empty line between documents")
    .option("--model <DIR>", "go on from this model")
    .option("--config <FILE>", "or start at random from a config.json; the tokenizer files lie beside it")
    .option("--epochs <N>", "passes over the text (default 1)")
    .option("--batch <N>", "sentence pairs to a step (default 32)")
    .option("--lr <RATE>", "learning rate (default 1e-4)")
    .option("--warmup <SHARE>", "share of the steps that warm up (default 0.1)")
    .option("--schedule <NAME>", "linear (default) | cosine | constant")
    .option("--dropout <P>", "instead of config.json's, everywhere")
    .option("--max-length <N>", "longest pair, in word pieces (default 128)")
    .option("--seed <N>", "names every random draw (default 0)")
    .option("--out <DIR>", "the model folder that is written")
    .option("--resume", "continue the run in --out from its last checkpoint")
    .option("--overwrite", "replace the run in --out");

  add(
    "prior",
    "Makes a prior for finetune --prior: the Fisher information of a text, by parameter.",
    "priorwork prior --model DIR --text corpus.txt --out corpus.prior",
    async (_, raw, at) => (await import("./prior.ts")).prior(raw, at),
  )
    .option("--model <DIR>", "the model whose weights are the prior's mean")
    .option("--text <FILE>", "a sentence a line, an empty line between documents")
    .option("--out <FILE>", "the prior, a safetensors file")
    .option(
      "--from <WHAT>",
      "masked (default where the model has the head): masked tokens, and next sentences | features",
    )
    .option("--readout <NAME>", "features: of which readout (default as for finetune)")
    .option("--sigma <S>", "features: their noise (default 1)")
    .option("--rank <K>", "directions kept beside the diagonal (default 0); each costs two vectors of the model's size")
    .option("--batches <N>", "batches, each with labels of its own drawn from the model (default 256)")
    .option("--batch <N>", "sequences to a batch (default 16)")
    .option("--size <N>", "sequences that the model is said to have learned from (default: the text's)")
    .option("--damping <D>", "precision before the text (default 1/initializer_range² of config.json)")
    .option("--max-length <N>", "longest sequence, in word pieces (default 128)")
    .option("--seed <N>", "names every random draw (default 0)")
    .option("--overwrite", "replace --out")
    .option("--json", "one JSON document on stdout, and nothing else there");

  const doctor = add(
    "doctor",
    "Says which device is used, what else was tried, and how to get a faster one.",
    "priorwork doctor",
    async (_, raw, at) => (await import("./doctor.ts")).doctor(raw, at),
  );
  const bench = add(
    "bench",
    "Measures the kernels and a training step on this device.",
    "priorwork bench kernels --json",
    async (words, raw, at) => (await import("./bench.ts")).bench(words, raw, at),
  );

  bench.argument("[WHAT...]", `kernels, ${BENCHES.join(", ")}, or part of a case's name (default: all)`);
  bench.option("--tune", "find the fastest matrix products for this adapter, and use them from now on");

  for (const command of [finetune, evaluate, predict, embed, pretrain, doctor, bench]) {
    command.option("--json", "one JSON document on stdout, and nothing else there");
  }
  for (const command of [finetune, pretrain]) {
    command.option(
      "--recompute",
      "keep of each layer only its input: less memory, about a third more time, the same bits",
    );
    command.option(
      "--dtype <TYPE>",
      "f32 (default), or f16: training steps multiply on the adapter's matrix unit and scale their loss",
    );
    command.option("--profile", "time every kernel: a table on stderr, and profile.json in --out");
  }
  for (const command of [finetune, evaluate, predict, embed]) {
    command
      .option("--text-column <NAME>", "the column of the text (default: sentence, text, …); a number with --no-header")
      .option("--pair-column <NAME>", "the column of a second text")
      .option("--no-header", "the first line is a row already")
      .option("--max-length <N>", "longest text, in word pieces with [CLS] and [SEP] (default: what the model holds)")
      .option("--on-long <WHAT>", "longer texts: truncate (default, with a count) or refuse");
  }
  for (const command of [finetune, evaluate]) {
    command.option("--label-column <NAME>", "the column of the label (default: label, …); labels may be words");
  }
  for (const command of [program, ...program.commands]) {
    command
      .exitOverride()
      .showSuggestionAfterError(false)
      .configureOutput({
        writeOut: (text) => io.stdout.write(text),
        // Commander's own error text; ours is written by `report`.
        writeErr: () => {},
        getOutHelpWidth: () => io.stdout.columns || 120,
      });
  }
  return program;
}

function textsOption(description: string): Option {
  return new Option("--text <TEXT>", description).argParser((value, before: readonly string[] | undefined) => [
    ...(before ?? []),
    value,
  ]);
}
