/** @file From θ to predictions: one model, or many small ones inside it. */
export {
  anchoredSlices,
  anchorNoise,
  drawAnchor,
  exponentialWeights,
  type MemberName,
  perturbedTargets,
  weighExamples,
} from "./anchored.ts";
export {
  bootstrapEces,
  eceFloor95,
  eceInterval,
  type Interval,
  type ReliabilityBin,
  reliability,
  wilson,
} from "./calibration.ts";
export { curvatureOf, type KroneckerGaussian, type LayerShape, numbersOf, type Structure } from "./curvature.ts";
export {
  type Chains,
  type Diagnosis,
  diagnose,
  effectiveSampleSize,
  meanSampleSize,
  splitRhat,
} from "./diagnostics.ts";
export {
  type Draws,
  heldDraws,
  readSlices,
  shareOf,
  spreadOver,
  type ThetaClassifier,
  thetaMembers,
  trainedSlices,
  writeSlices,
} from "./draws.ts";
export { type EnsembleOptions, ensemble, type Subject } from "./ensemble.ts";
export {
  type Evidence,
  type EvidenceGroup,
  type EvidenceOptions,
  effectiveParameters,
  evidence,
  evidenceGradient,
  logEvidence,
  maximiseEvidence,
  nextPrecision,
} from "./evidence.ts";
export { type Block, type Ggn, type GgnOptions, ggn } from "./ggn.ts";
export { type HeadEvidence, type HeadEvidenceOptions, learnHeadPrecision } from "./head-evidence.ts";
export {
  expectLaplace,
  type Laplace,
  type LaplaceCost,
  type LaplaceOptions,
  laplace,
  laplaceDraws,
  type MonteCarloOptions,
  monteCarlo,
  priorShapes,
} from "./laplace.ts";
export type { LogitModel } from "./layers.ts";
export { type GaussianLogits, gaussianLogits, linearised, probit } from "./linearised.ts";
export { type DropoutMembersOptions, dropoutMembers, pointEstimate } from "./members.ts";
export { headCurvature, meanFactor, type Pace, relaxation, stepFor, varianceAfter } from "./pace.ts";
export {
  metricsOfPrediction,
  type Posterior,
  type Prediction,
  predict,
  predictAll,
  predictionOf,
} from "./posterior.ts";
export { combine, type Predictive } from "./predictive.ts";
export { klToPrior, type PriorStrength, priorStrength } from "./prior-strength.ts";
export { rankOneDraws, rankOneMembers } from "./rank-one.ts";
export { auroc, oodAuroc, type Selective, type SelectivePoint, selective } from "./ranking.ts";
export {
  type Cycle,
  cycleOf,
  cycleShares,
  cyclical,
  type LangevinSettings,
  type SghmcSettings,
  sghmc,
  sgld,
} from "./samplers.ts";
export { Swag, type SwagOptions, swag, swagSteps, swagVectors } from "./swag.ts";
export {
  fitTemperature,
  type LabelledLogits,
  type Temperature,
  type TemperatureScaled,
  temper,
  temperatureScaled,
} from "./temperature.ts";
export {
  diagnoseChains,
  diagnoseTrace,
  type SentenceLogits,
  sentenceLogits,
  type TraceRow,
  traceChains,
  traceCsv,
  traceJson,
  traceRows,
  type Watched,
} from "./trace.ts";
export {
  drawsOf,
  MOST_STEPS,
  sampledSlices,
  type TrajectoryDraw,
  type TrajectoryOptions,
  trajectory,
} from "./trajectory.ts";
export { featureCosine, LEAST_COSINE, volumeWarning } from "./volume.ts";
