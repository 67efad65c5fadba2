/**
 * @file What a script imports from "priorwork". The kernels are public apart, as "priorwork/kernels".
 */
export * from "./autograd/index.ts";
export {
  type Example,
  type MaskedTokens,
  maskTokens,
  nspPairs,
  type PackedBatch,
  packBatch,
  repeatBatch,
} from "./data/batches.ts";
export { type LabelSet, labelSet } from "./data/labels.ts";
export { loadTokenizer, readTable } from "./data/load.ts";
export { parseTable, type Table, type TableOptions } from "./data/tables.ts";
export { BertTokenizer, type Encoded } from "./data/tokenizer.ts";
export * from "./errors.ts";
export type { AdapterReport } from "./gpu/index.ts";
export { type Attempt, type OpenOptions, openGpu } from "./gpu/node.ts";
export {
  BertEncoder,
  BertForSequenceClassification,
  type ClassifierOptions,
  type DropoutKeys,
  type HeadSpec,
} from "./model/bert.ts";
export { type BertConfig, parseBertConfig } from "./model/config.ts";
export { type Checkpoint, exportTensors, type LoadReport } from "./model/load.ts";
export { BertForPreTraining, type PretrainingBatch } from "./model/pretraining.ts";
export { memberPrecision, type RankOne, spreadMembers } from "./model/rank-one.ts";
export { READOUTS, type Readout, readoutNamed, type Vectors } from "./model/readout.ts";
export { writeSafetensors } from "./model/safetensors.ts";
export { open } from "./open.ts";
export * from "./posterior/index.ts";
export { Stream } from "./random.ts";
export * from "./train/index.ts";
