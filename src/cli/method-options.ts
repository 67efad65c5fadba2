/**
 * @file Flags of the methods that keep many θ. Each flag belongs to some methods; given with another it is refused, so that
 * nobody believes in a temperature that nothing has read.
 */
import { InputError } from "../errors.ts";
import { DEFAULT_MEMBER_PRECISION } from "../model/rank-one.ts";
import type { Method, RawFlags } from "./options.ts";
import { choiceValue, groupsValue, numberValue, refuse, wholeValue } from "./values.ts";

/** How a sampler walks once θ is trained. */
export interface SamplerOptions {
  /** What moves; the rest stays at the mode. */
  groups: string[];
  /** h, on J; undefined, as burnIn and thin: by sampling-steps.ts. */
  lr: number | undefined;
  /** T of the whole posterior. */
  temperature: number;
  /** T of the likelihood alone. */
  likelihoodTemperature: number;
  burnIn: number | undefined;
  thin: number | undefined;
  chains: number;
  /** SGHMC's α. */
  friction: number;
  /** Steps after which SGHMC draws its velocities anew; undefined: only at the start. */
  resample: number | undefined;
  /** Cycles of the step size that a chain walks through; undefined: it stays. */
  cycles: number | undefined;
  /** Share of a cycle that explores, at large steps and without noise; undefined without cycles. */
  exploration: number | undefined;
}

/** How SWAG's path is walked and drawn from. */
export interface SwagFlags {
  points: number;
  /** Steps between points; undefined: an epoch. */
  every: number | undefined;
  rank: number;
  temperature: number;
  /** Modes, each with a Gaussian of its own: more than one is multi-SWAG. */
  modes: number;
}

/** How the members of an ensemble are made to differ. */
export interface EnsembleFlags {
  /** Groups whose centre each member draws from the prior; undefined: members differ by seed alone. */
  anchored: string[] | undefined;
}

/** Members that share their weights. */
export interface RankOneFlags {
  /** Linear layers that have members. */
  layers: "head" | "all";
  /** τ of each member's vectors around 1. */
  precision: number;
}

/** Which Gaussian is put around the mode, and how it predicts. */
export interface LaplaceFlags {
  /** Of the curvature. */
  structure: "full" | "diagonal" | "kronecker";
  /** Whose curvature; undefined: the last layer's. */
  groups: string[] | undefined;
  predictive: Predictive;
  /** Most memory for the curvature; undefined: the library's 100 MB. */
  maxBytes: number | undefined;
  /** T of the whole posterior. */
  temperature: number;
  /** T of the likelihood alone. */
  likelihoodTemperature: number;
}

const PREDICTIVES = ["linearised", "probit", "mc"] as const;
export type Predictive = (typeof PREDICTIVES)[number];

export interface MethodOptions {
  /** Of `sgld` and `sghmc`. */
  sampler: SamplerOptions | undefined;
  swag: SwagFlags | undefined;
  ensemble: EnsembleFlags | undefined;
  rankOne: RankOneFlags | undefined;
  laplace: LaplaceFlags | undefined;
  /** Temperatures of the whole posterior to measure on dev, beside the one that the run keeps. */
  sweep: number[] | undefined;
}

/** Of the whole posterior; 0 is the mode alone. */
export const TEMPERATURE = { min: 0, max: 1e9 };
/** Of the likelihood alone. Its inverse multiplies a curvature: far below, their product is no number. */
export const LIKELIHOOD_TEMPERATURE = { min: 1e-9, max: 1e9 };
export const CHAINS = { min: 1, max: 64 };

/** Key → flag and the methods that read it. */
const FLAGS: Readonly<Record<string, readonly [string, readonly Method[]]>> = {
  sample: ["--sample", ["sgld", "sghmc"]],
  sampleLr: ["--sample-lr", ["sgld", "sghmc"]],
  temperature: ["--temperature", ["sgld", "sghmc", "swag", "laplace"]],
  burnIn: ["--burn-in", ["sgld", "sghmc"]],
  thin: ["--thin", ["sgld", "sghmc"]],
  chains: ["--chains", ["sgld", "sghmc"]],
  friction: ["--friction", ["sghmc"]],
  resample: ["--resample", ["sghmc"]],
  cycles: ["--cycles", ["sgld", "sghmc"]],
  exploration: ["--exploration", ["sgld", "sghmc"]],
  points: ["--points", ["swag"]],
  every: ["--every", ["swag"]],
  rank: ["--rank", ["swag"]],
  modes: ["--modes", ["swag"]],
  anchored: ["--anchored", ["ensemble"]],
  memberLayers: ["--member-layers", ["rank-one"]],
  memberPrecision: ["--member-precision", ["rank-one"]],
  structure: ["--structure", ["laplace"]],
  laplaceGroups: ["--laplace-groups", ["laplace"]],
  predictive: ["--predictive", ["laplace"]],
  laplaceMemory: ["--laplace-memory", ["laplace"]],
  temperatureSweep: ["--temperature-sweep", ["sgld", "sghmc", "swag", "laplace"]],
  likelihoodTemperature: ["--likelihood-temperature", ["laplace", "sgld", "sghmc"]],
};

/** Where an option is not called as its flag is. */
const NAMED: Readonly<Record<string, string>> = {
  "sampler.groups": "--sample",
  "sampler.lr": "--sample-lr",
  "laplace.groups": "--laplace-groups",
  "laplace.maxBytes": "--laplace-memory",
  "rankOne.layers": "--member-layers",
  "rankOne.precision": "--member-precision",
  sweep: "--temperature-sweep",
};

/** The flag of an option of a method, as a run remembers it; undefined: it has the option's own name. */
export function flagOfMethod(method: string, option?: string): string | undefined {
  return NAMED[option === undefined ? method : `${method}.${option}`];
}

/** All of them, of a run that predicts with `members`; an InputError for a value that is not one, or a flag that the method does not read. */
export function methodOptions(raw: RawFlags, method: Method, members: number): MethodOptions {
  const given = (key: string) => {
    const value = raw[key];
    // A flag that may stand alone is true then.
    return value === true ? "" : typeof value === "string" ? value : undefined;
  };
  for (const [key, [flag, methods]] of Object.entries(FLAGS)) {
    const text = given(key);
    if (text === undefined || methods.includes(method)) continue;
    const others = methods.join(" or ");
    const advice = `Leave it out, or choose --method ${others}.`;
    if (raw[key] === true) throw new InputError(`${flag}: --method ${method} does not use it. ${advice}`);
    refuse(flag, text, `--method ${method} does not use it`, advice);
  }
  const value = (key: string, otherwise: string) => given(key) ?? otherwise;
  const above = (key: string, flag: string, otherwise: string, max = 1e9) =>
    numberValue(flag, value(key, otherwise), { min: 0, above: true, max, example: otherwise });
  const whole = (key: string, flag: string, otherwise: string, min: number, max: number) =>
    wholeValue(flag, value(key, otherwise), { min, max, example: otherwise });
  const temperature = numberValue("--temperature", value("temperature", "1"), { ...TEMPERATURE, example: "1" });
  const likelihoodTemperature = numberValue("--likelihood-temperature", value("likelihoodTemperature", "1"), {
    ...{ ...LIKELIHOOD_TEMPERATURE, example: "1" },
  });
  if (method === "laplace" && temperature === 0)
    refuse("--temperature", value("temperature", ""), "leaves the mode alone (expected a number > 0)", "Give, say, 1.");
  return {
    sampler:
      method === "sgld" || method === "sghmc"
        ? {
            ...cyclesOf(given),
            groups: groupsValue("--sample", value("sample", "head")),
            lr: given("sampleLr") === undefined ? undefined : above("sampleLr", "--sample-lr", "0.02"),
            temperature,
            likelihoodTemperature,
            burnIn:
              given("cycles") !== undefined
                ? 0
                : given("burnIn") === undefined
                  ? undefined
                  : whole("burnIn", "--burn-in", "500", 0, 1e7),
            thin: given("thin") === undefined ? undefined : whole("thin", "--thin", "50", 1, 1e6),
            chains: whole("chains", "--chains", String(Math.min(2, members)), CHAINS.min, CHAINS.max),
            friction: above("friction", "--friction", "0.1", 1),
            resample: given("resample") === undefined ? undefined : whole("resample", "--resample", "50", 1, 1e7),
          }
        : undefined,
    swag:
      method === "swag"
        ? {
            points: whole("points", "--points", "20", 2, 1e6),
            every: given("every") === undefined ? undefined : whole("every", "--every", "16", 1, 1e6),
            rank: whole("rank", "--rank", "10", 0, 1000),
            temperature,
            modes: whole("modes", "--modes", "1", 1, 64),
          }
        : undefined,
    ensemble:
      method === "ensemble"
        ? {
            anchored:
              given("anchored") === undefined
                ? undefined
                : groupsValue("--anchored", raw.anchored === true ? "head" : value("anchored", "")),
          }
        : undefined,
    rankOne:
      method === "rank-one"
        ? {
            layers: choiceValue("--member-layers", value("memberLayers", "head"), ["head", "all"]),
            precision: above("memberPrecision", "--member-precision", String(DEFAULT_MEMBER_PRECISION)),
          }
        : undefined,
    sweep:
      given("temperatureSweep") === undefined
        ? undefined
        : value("temperatureSweep", "")
            .split(",")
            .map((text) =>
              numberValue("--temperature-sweep", text.trim(), { ...TEMPERATURE, above: true, example: "0.1,1,10" }),
            ),
    laplace:
      method === "laplace"
        ? {
            ...curvatureFlags(given),
            temperature,
            likelihoodTemperature,
          }
        : undefined,
  };
}

/** The options at another temperature of the whole posterior. */
export function atTemperature<T extends MethodOptions>(options: T, temperature: number): T {
  const { sampler, swag, laplace } = options;
  return {
    ...options,
    sampler: sampler && { ...sampler, temperature },
    swag: swag && { ...swag, temperature },
    laplace: laplace && { ...laplace, temperature },
  };
}

/** Of cyclical step sizes. InputError: what only they have without them, or what they do in another way. */
function cyclesOf(given: (key: string) => string | undefined): Pick<SamplerOptions, "cycles" | "exploration"> {
  const [cycles, exploration, burnIn] = ["cycles", "exploration", "burnIn"].map(given);
  if (cycles === undefined) {
    if (exploration !== undefined)
      refuse("--exploration", exploration, "a share of a cycle (found no --cycles)", "Add, say, --cycles 4.");
    return { cycles: undefined, exploration: undefined };
  }
  if (burnIn !== undefined)
    refuse("--burn-in", burnIn, "every cycle begins with its exploration, which is its burn-in", "Leave it out, or give --exploration."); // biome-ignore format: one sentence
  return {
    cycles: wholeValue("--cycles", cycles, { min: 1, max: 1e6, example: "4" }),
    exploration: numberValue("--exploration", exploration ?? "0.5", { min: 0, max: 1, below: true, example: "0.5" }),
  };
}

function curvatureFlags(
  given: (key: string) => string | undefined,
): Pick<LaplaceFlags, "structure" | "groups" | "predictive" | "maxBytes"> {
  const [groups, structure, predictive, memory] = ["laplaceGroups", "structure", "predictive", "laplaceMemory"].map(given); // biome-ignore format: names beside keys
  const otherwise = groups === undefined ? "full" : "diagonal";
  const chosen = choiceValue("--structure", structure ?? otherwise, ["full", "diagonal", "kronecker"]);
  if (groups !== undefined && chosen === "full")
    refuse("--structure", "full", "a full covariance is of the last layer only (found --laplace-groups)", "Choose diagonal or kronecker, or leave the groups out."); // biome-ignore format: one sentence
  const MB =
    memory === undefined
      ? undefined
      : numberValue("--laplace-memory", memory, { min: 0, above: true, max: 1e6, example: "500" });
  const named = groups === undefined ? undefined : groupsValue("--laplace-groups", groups);
  return {
    structure: chosen,
    groups: named,
    // Of the last layer exact, of groups, whose draws are no networks, the model that the curvature is of.
    predictive: choiceValue("--predictive", predictive ?? "linearised", PREDICTIVES),
    maxBytes: MB ? 1e6 * MB : undefined,
  };
}
