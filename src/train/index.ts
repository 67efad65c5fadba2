/** @file Likelihood + prior = log-posterior, and what climbs it. */
export { type Facts, parseState, serializeState, type TrainState } from "./checkpoint.ts";
export type { PriorDensity } from "./density.ts";
export { type Classifier, type Evaluation, evaluate, labelsOf, logitsOf } from "./evaluate.ts";
export {
  classifierScores,
  FisherCollector,
  type FisherNumbers,
  featureScores,
  fisherVectors,
  pretrainingScores,
  type Scores,
} from "./fisher.ts";
export { type FitOptions, fit, type StepReport, Trainer } from "./fit.ts";
export type { LossScaleOptions } from "./lossscale.ts";
export { type LowRankForm, lowRankLogDensity } from "./lowrank.ts";
export {
  type LogProbabilities,
  logSoftmaxRows,
  type Metrics,
  metricsOf,
  type TopLabels,
  topLabels,
} from "./metrics.ts";
export { type Likelihood, type LogPosterior, logPosterior, type Terms } from "./objective.ts";
export {
  type AdamSettings,
  type AdamWSettings,
  adam,
  adamW,
  type LearningRates,
  type Optimizer,
  type SgdSettings,
  sgd,
} from "./optimizers.ts";
export { type PretrainingOptions, pretrainingSource } from "./pretraining.ts";
export { type GaussianPriorSpec, type GroupPrior, gaussianPrior, type Prior } from "./prior.ts";
export { type ScheduleName, type ScheduleOptions, schedule } from "./schedule.ts";
export {
  diagonalPrior,
  type LowRankNumbers,
  laplacePrior,
  lowRankPrior,
  type ParameterNumbers,
  studentTPrior,
} from "./shaped-priors.ts";
export { exampleSource, type PlanOptions, type Source } from "./source.ts";
export { bytesText, expectVectorRoom, type VectorPlan, vectorBytes, vectorText } from "./vector-room.ts";
