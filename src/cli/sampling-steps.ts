/**
 * @file The steps of `--method sgld` and `sghmc` where the flags leave them open: how large, how many before the first draw,
 * how many between draws, by posterior/pace.ts and as far as they cost seconds; and a warning where a chain is too short.
 */
import type { Slice } from "../autograd/index.ts";
import { packBatch } from "../data/batches.ts";
import { headCurvature, meanFactor, relaxation, shareOf, stepFor, varianceAfter } from "../posterior/index.ts";
import type { Prior } from "../train/index.ts";
import { figure } from "./format.ts";
import type { SamplerOptions } from "./method-options.ts";
import type { PhaseContext } from "./phase.ts";

/** What a sampler's flags say or leave to be found. */
export interface Steps {
  lr: number;
  burnIn: number;
  thin: number;
}

/** Steps of the whole model are passes of it, and there are no more of them; of a head, on vectors that are kept, they are cheap. */
const FEW = { burnIn: 500, thin: 50 };
const MANY = { burnIn: 3_000, thin: 300 };

/** Where no curvature is known. */
const USUAL_STEP = { sgld: 0.02, sghmc: 0.005 };

/** Texts that the head's curvature is taken of. */
const TEXTS = 64;

/** Times that a chain forgets where it was, before its first draw and between draws. */
const FORGOTTEN = 3;

/** A direction without data whose draws have less than this share of its variance is warned of. */
const ENOUGH = 2 / 3;

/** Times the fitting step: there the variance is twice what it should be where the curvature is attained, and at four times without end. */
const TOO_LARGE = 2;

/** Upper bounds of the burn-in and thinning that are found without flags. */
export function mostSteps({ burnIn, thin }: SamplerOptions, headOnly: boolean): Omit<Steps, "lr"> {
  const most = headOnly ? MANY : FEW;
  return { burnIn: burnIn ?? most.burnIn, thin: thin ?? most.thin };
}

/** `kept`: a head alone moves, on vectors that are kept; `batch`: examples to a step; `slices`: what moves. */
export async function samplingSteps(
  { model, target, data, options, out }: Pick<PhaseContext, "model" | "target" | "data" | "options" | "out">,
  sampler: SamplerOptions,
  { kept, batch, slices }: { kept: boolean; batch: number; slices: readonly Slice[] },
): Promise<Steps> {
  const { cycles, exploration = 0, chains } = sampler;
  const method = options.method === "sghmc" ? "sghmc" : "sgld";
  const friction = method === "sghmc" ? sampler.friction : undefined;
  const N = target.N / sampler.likelihoodTemperature;
  const precisions = gaussianPrecisions(target.prior, slices);
  const byCurvature = async () => {
    const curvature = await headCurvature(model, packBatch(data.slice(0, TEXTS)));
    const { temperature } = sampler;
    const seen = batch / data.length;
    return stepFor({ friction }, { curvature, precision: Math.max(0, ...precisions), N, seen, temperature });
  };
  const fitting = kept && model.head === "linear" ? await byCurvature() : undefined;
  const lr = sampler.lr ?? fitting ?? USUAL_STEP[method];
  if (fitting !== undefined && lr > TOO_LARGE * fitting) {
    out.warning(
      `--sample-lr ${figure(lr)}: where the likelihood is most curved such steps may spread θ far beyond the posterior, which R-hat does not see. Take at most ${figure(fitting)}.`,
    );
  }
  // Nothing is known of a prior of another shape: then there is nothing to wait for.
  const forgets = precisions.length > 0 ? relaxation({ lr, N, friction }, Math.min(...precisions)) : 0;
  const most = kept ? MANY : FEW;
  const enough = (steps: number, least: number, most: number) => Math.max(least, Math.min(most, Math.ceil(steps)));
  const said = `${method}: steps of ${figure(lr)} on the mean loss`;
  const warn = (what: string, walked: number, cure: string) => {
    const share = varianceAfter(walked, forgets);
    if (forgets === 0 || share >= ENOUGH) return;
    out.warning(
      `where the data say nothing a chain forgets where it began in ${figure(forgets)} steps, and ${what} ${figure(walked)}: ` +
        `there draws have ${figure(100 * share)} % of the posterior's variance. ${cure}`,
    );
  };

  if (cycles === undefined) {
    const burnIn = sampler.burnIn ?? enough(FORGOTTEN * forgets, FEW.burnIn, most.burnIn);
    const thin = sampler.thin ?? enough(FORGOTTEN * forgets, FEW.thin, most.thin);
    out.note(`${said}, ${burnIn} before the first draw, ${thin} from draw to draw`);
    warn("gives its first draw after", burnIn + thin, "Raise --burn-in or --sample-lr.");
    return { lr, burnIn, thin };
  }
  // What `thin` steps of a cycle's sampling part are worth in steps of full size, times the draws of a cycle.
  const worth = meanFactor(exploration) * Math.ceil(shareOf(options.members, chains, 0) / cycles);
  const thin = sampler.thin ?? enough(forgets / worth, FEW.thin, most.thin);
  out.note(`${said} at the beginning of a cycle, ${thin} from draw to draw`);
  warn("a cycle's sampling part is worth", thin * worth, "Raise --thin or --sample-lr, or lower --exploration.");
  return { lr, burnIn: 0, thin };
}

/** Of the slices' priors that are isotropic Gaussians. */
function gaussianPrecisions(prior: Prior, slices: readonly Slice[]): number[] {
  return slices.filter((slice) => !prior.density?.covers(slice)).map((slice) => prior.precision(slice));
}
