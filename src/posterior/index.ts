/** @file From θ to predictions: one model, or many small ones inside it. */
export {
  type DropoutMembersOptions,
  dropoutMembers,
  metricsOfPrediction,
  type Posterior,
  type Prediction,
  pointEstimate,
  predictAll,
} from "./members.ts";
export { combine, type Predictive } from "./predictive.ts";
