/**
 * @file The steps of `--method sgld` and `sghmc` where the flags leave them open: how large, how many before the first draw,
 * how many between draws, by posterior/pace.ts and as far as they cost seconds; and a warning where a chain is too short.
 */
import type { Slice } from "../autograd/index.ts";
import { packBatch } from "../data/batches.ts";
import { headCurvature, meanFactor, relaxation, shareOf, stepFor, varianceAfter } from "../posterior/index.ts";
import type { Prior } from "../train/index.ts";
import type { SamplerOptions } from "./method-options.ts";
import type { PhaseContext } from "./posterior-phase.ts";

/** What a sampler's flags say or leave to be found. */
export interface Pace {
  lr: number;
  burnIn: number;
  thin: number;
}

/** Steps that are cheap, of a head on vectors that are kept, may be many; others are passes of the whole model. */
const MOST = { kept: { burnIn: 3_000, thin: 300 }, model: { burnIn: 500, thin: 50 } };
const LEAST = MOST.model;

/** Where no curvature is known. */
const USUAL_STEP = { sgld: 0.02, sghmc: 0.005 };

/** Texts that the head's curvature is taken of. */
const TEXTS = 64;

/** A direction without data whose draws have less than this share of its variance is warned of. */
const ENOUGH = 2 / 3;

/** No pace that is found is longer. */
export function longestPace({ burnIn = MOST.kept.burnIn, thin = MOST.kept.thin }: SamplerOptions): Omit<Pace, "lr"> {
  return { burnIn, thin };
}

/** `kept`: a head alone moves, on vectors that are kept; `batch`: examples to a step; `slices`: what moves. */
export async function samplingPace(
  { model, target, data, options, out }: Pick<PhaseContext, "model" | "target" | "data" | "options" | "out">,
  sampler: SamplerOptions,
  { kept, batch, slices }: { kept: boolean; batch: number; slices: readonly Slice[] },
): Promise<Pace> {
  const { cycles, exploration = 0, chains } = sampler;
  const method = options.method === "sghmc" ? "sghmc" : "sgld";
  const friction = method === "sghmc" ? sampler.friction : undefined;
  const N = target.N / sampler.likelihoodTemperature;
  const byCurvature = async () =>
    stepFor(method, await headCurvature(model, packBatch(data.slice(0, TEXTS))), batch / data.length);
  const lr = sampler.lr ?? (kept && model.head === "linear" ? await byCurvature() : USUAL_STEP[method]);
  const tau = smallestPrecision(target.prior, slices);
  const forgets = tau === undefined ? 0 : relaxation({ lr, N, friction }, tau);
  const most = kept ? MOST.kept : MOST.model;
  const within = (least: number, steps: number, most: number) => Math.max(least, Math.min(most, Math.ceil(steps)));
  // Of `thin` steps of a cycle's sampling part so many are of full size, and a cycle has so many times `thin`.
  const full =
    cycles === undefined ? 1 : meanFactor(exploration) * Math.ceil(shareOf(options.members, chains, 0) / cycles);
  const burnIn = cycles === undefined ? (sampler.burnIn ?? within(LEAST.burnIn, 3 * forgets, most.burnIn)) : 0;
  const thin = sampler.thin ?? within(LEAST.thin, cycles === undefined ? 3 * forgets : forgets / full, most.thin);
  const figure = (x: number) => Number(x.toPrecision(3)).toLocaleString("en");
  const before = cycles === undefined ? `${burnIn} steps before the first draw, ` : "";
  out.note(`${method}: steps of ${figure(lr)} on the mean loss, ${before}${thin} from draw to draw`);
  const walked = burnIn + thin * full;
  const share = varianceAfter(walked, forgets);
  if (forgets > 0 && share < ENOUGH) {
    const cure = cycles === undefined ? "--burn-in or --sample-lr" : "--thin or --sample-lr, or lower --exploration";
    out.warning(
      `a chain forgets where it began in ${figure(forgets)} steps where the data say nothing, and ${cycles === undefined ? "gives its first draw after" : "a cycle's samples are worth"} ${figure(walked)}: there draws have ${figure(100 * share)} % of the posterior's variance. Raise ${cure}.`,
    );
  }
  return { lr, burnIn, thin };
}

/** Of the isotropic Gaussians among the slices' priors; undefined: there are none. */
function smallestPrecision({ density, precision }: Prior, slices: readonly Slice[]): number | undefined {
  const found = slices.filter((slice) => !density?.covers(slice)).map((slice) => precision(slice));
  return found.length > 0 ? Math.min(...found) : undefined;
}
